"""Do duplicates look alike, and others not? Planted copies and pairs that a person judged."""
