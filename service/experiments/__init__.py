"""Experiments: which arm a reader is in, and what the arms say."""
