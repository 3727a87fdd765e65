"""Images over HTTP: guarded, polite, within limits."""
