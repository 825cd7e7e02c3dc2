"""Data sets: images in [-1, 1] and the facts that the rest of the framework needs of them."""
