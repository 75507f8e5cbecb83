"""Command lines: sampling from sketches, training, evaluation."""
