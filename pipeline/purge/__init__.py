"""Purge: a finished dataset without what deny-lists name."""
