"""Parallel decoding: the loop, its samplers, batches of samples."""
