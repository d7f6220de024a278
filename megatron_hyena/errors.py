"""The one exception for mistakes a user can mend.

Entry points catch it, print its sentence and exit with status 2; every other exception is a
defect of the program and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or configuration: one sentence that names the culprit and the fix."""
