"""Training beside the Trainer of transformers: `run.py` runs it."""
