"""From pairs to a checkpoint: examples, one step, several processes, the loop, resuming after a crash."""
