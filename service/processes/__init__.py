"""`notellm serve` on one machine: child processes, their folder, their health, a Redis of their own."""
