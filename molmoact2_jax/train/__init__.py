"""Losses, optimizer, step, loop, stages."""
