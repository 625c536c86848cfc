"""What a webhook is told, out of Redis."""
