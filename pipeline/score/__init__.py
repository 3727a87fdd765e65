"""The score stage: fetched shards are scored with CLIP."""
