"""Images as bytes and as arrays."""
