"""Checkpoints in the published form: import and export."""
