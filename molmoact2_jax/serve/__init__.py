"""Policies and servers."""
