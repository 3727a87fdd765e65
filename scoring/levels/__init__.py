"""Alignment levels: exact, equally large, in constant memory."""
