"""Datasets to packed batches. NumPy only."""
