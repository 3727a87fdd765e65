"""Recaption: captions that a model writes for the pictures of the lowest levels."""
