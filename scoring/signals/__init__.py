"""Further numbers a pair, each computed from embeddings that are stored: one file a signal."""
