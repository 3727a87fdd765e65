"""The fetch stage: the pairs of a shard become images."""
