"""CLIP scores: models, captions, images."""
