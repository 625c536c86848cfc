"""Prompts, hashtags, suggestions, and the grammars of the outputs."""
