"""The level stage: scores are cut into alignment levels."""
