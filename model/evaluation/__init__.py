"""Metrics of a model: retrieval, hashtags, categories, calibration; and its opponents."""
