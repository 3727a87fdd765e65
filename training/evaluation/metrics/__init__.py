"""Scores of answers: arithmetic over texts and numbers that knows nothing of models or files."""
