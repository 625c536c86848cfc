"""Rows of an index in arrays: ids, versions, fields, which are alive or hidden, and tombstones."""
