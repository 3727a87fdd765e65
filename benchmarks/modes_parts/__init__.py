"""The parts of benchmarks/modes.py: its data, its retrieval and its report."""
