"""NoteLLM, its losses, base models, adapters, SentenceBERT, checkpoints."""
