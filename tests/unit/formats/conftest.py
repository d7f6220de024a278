"""Property-based tests draw the same files in each run, and keep no diary of failures.

`--hypothesis-profile=wide` draws others each time, for a search by hand.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.register_profile("wide", database=None, deadline=None)
settings.load_profile("suite")
