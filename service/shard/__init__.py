"""An indexer process: the indexes of one shard, one a model, and what it shows of itself and of Redis."""
