"""A training run: how it is put together, the loop around the loop, its folder."""
