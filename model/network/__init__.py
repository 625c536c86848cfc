"""The network and its parts: NoteLLM, losses, base models, adapters, SentenceBERT, checkpoints."""
