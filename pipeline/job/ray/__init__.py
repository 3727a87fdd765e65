"""Beam's workers on a Ray cluster; nothing in here knows what a pipeline does."""
