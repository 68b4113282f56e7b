"""Adapters to simulators."""
