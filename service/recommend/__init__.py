"""The policy: what to answer from the store, the index and the workers. Knows neither HTTP nor Redis."""
