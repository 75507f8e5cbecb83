"""Tables and plots of what guidance does, on held-out scenes."""
