"""The policy: answers from the store, the index and the workers. Knows neither HTTP nor Redis."""
