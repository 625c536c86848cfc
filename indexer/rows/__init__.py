"""Rows of an index in arrays: ids, labels, versions, which are alive, and tombstones."""
