"""The store on a Redis Cluster: a cell, whose keys share one slot, and the node that serves it."""
