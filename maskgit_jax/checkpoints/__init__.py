"""Weights: the released format, other copies, where they are fetched from."""
