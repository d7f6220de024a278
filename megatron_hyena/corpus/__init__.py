"""From files to a genome store and its shards: all that happens before training."""
