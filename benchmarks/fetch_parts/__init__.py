"""Parts of the benchmark of fetching."""
