"""The report stage, and what looks into a dataset: manifest, page, inspect, verify."""
