"""A checkpoint at work: backends, bulk embedding, canaries and golden answers, calibrated scores."""
