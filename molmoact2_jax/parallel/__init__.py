"""Meshes, partitioning and process start."""
