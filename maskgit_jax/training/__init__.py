"""Losses, optimizers and the update of both training stages."""
