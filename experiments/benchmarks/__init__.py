"""Speed and memory against the published way."""
