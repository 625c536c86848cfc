"""Experiments in Redis."""
