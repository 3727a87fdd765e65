"""Near-duplicates among embeddings."""
