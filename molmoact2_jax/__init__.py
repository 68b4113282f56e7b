"""Trains, fine-tunes, evaluates and serves MolmoAct2 in JAX."""
