"""MaskGIT in JAX/Flax: tokenizer, transformer, checkpoints, schedules, decoding, training."""
