"""The Beam job that turns image URLs and captions into an aligned training set."""
