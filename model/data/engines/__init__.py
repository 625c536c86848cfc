"""Eq. 1 is one query; an engine runs it: DuckDB on one machine, Spark on a cluster."""
