"""What `curate --dry-run` does: the graph as it would be submitted, checked and shown."""
