"""What a curation of another size would take, reckoned from what one took."""
