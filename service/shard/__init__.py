"""An indexer process: the indexes of one shard, one a model, and the metrics of them and of Redis."""
