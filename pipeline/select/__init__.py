"""Selections and mergers: new datasets from samples of finished ones."""
