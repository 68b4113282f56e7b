"""Checkpoints of runs and of the released format."""
