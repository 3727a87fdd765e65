"""The deduplicate stage: the best scored pair of every group of duplicates stays."""
