"""The tokenizer and the transformer."""
