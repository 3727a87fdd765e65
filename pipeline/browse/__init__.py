"""Browse: a local page over all rows of a dataset, those that were left out included."""
