"""Does alignment help? `run.py` trains the five modes beside each other."""
