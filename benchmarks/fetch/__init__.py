"""Fetching beside img2dataset: `run.py` runs it."""
