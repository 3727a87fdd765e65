"""The engine of the peer, inside our shard."""
