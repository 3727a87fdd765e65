"""The read stage: inputs of any form become shards of pairs."""
