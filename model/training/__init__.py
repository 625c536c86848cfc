"""From pairs to a checkpoint: examples, one step, several processes, the loop, going on after a crash."""
