"""Notes as prompts, hashtags as words: what a model is shown, and what it may write."""
