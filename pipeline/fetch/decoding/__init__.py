"""Bytes become images, in processes of their own."""
