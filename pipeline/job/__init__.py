"""A job from its lock to its summary: runners, workers, logs."""
