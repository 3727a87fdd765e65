"""The pack stage: train shards of equal size."""
