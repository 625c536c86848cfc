"""Shards behind sockets: the server of one, and the searcher over all of them."""
