"""Shards over RPC: the server of one, and the searcher over all of them."""
