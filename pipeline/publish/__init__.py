"""Publish: a finished dataset as the Hugging Face Hub and other readers expect it."""
