"""Backends that run a checkpoint, bulk embedding, canaries and golden answers, calibrated scores."""
