"""From a dataset on disk to batches: read, tokenise, plan, collate."""
