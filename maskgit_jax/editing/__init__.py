"""Pictures with a part sampled again: masks, canvas, windows."""
