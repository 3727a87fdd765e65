"""What all stages share of a dataset on disk: its guard, commits, tars and progress."""
