"""What steers sampling: structure distance, classifier-free guidance."""
