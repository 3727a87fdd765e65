"""Answers, token by token, to several who ask at once."""
