"""Packed sequences: segments, attention, and the check that samples do not leak."""
