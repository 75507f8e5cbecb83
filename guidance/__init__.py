"""What steers sampling without training: see `api` for what is offered in Python."""

from guidance.api import sketch, stream_sketch, stroke

__all__ = ["sketch", "stream_sketch", "stroke"]
