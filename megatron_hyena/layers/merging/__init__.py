"""Merged stages: positions become chunks on entry, and are restored on exit."""
