"""Words of a text that stand for something else."""

IMAGE_TOKEN = "<image>"
"""Where a picture stands among the words of a conversation."""
