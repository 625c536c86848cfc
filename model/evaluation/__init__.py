"""How good a model is: retrieval, hashtags, categories, calibration, and what it is compared with."""
