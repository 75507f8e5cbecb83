"""Measures of pictures, and the networks that some of them need."""
