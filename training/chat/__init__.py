"""Asks a model about pictures, in the terminal."""
