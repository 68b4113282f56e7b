"""Tokenizer, prompts, action codec, points and boxes. NumPy only."""
