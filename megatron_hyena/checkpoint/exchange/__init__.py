"""Checkpoints of other programs, one tensor at a time, with nothing lost in silence."""
