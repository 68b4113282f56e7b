"""Building blocks: operations on arrays, declaring weights, LoRA."""
