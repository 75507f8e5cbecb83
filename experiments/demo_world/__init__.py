"""The pictures that the demo model is trained on, and the network that judges them."""
