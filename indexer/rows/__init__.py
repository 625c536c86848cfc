"""Rows of an index in arrays: ids, versions, fields, vectors, which are alive or hidden, and tombstones."""
