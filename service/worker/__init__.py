"""A worker process: runs the model, for the jobs of the queue and for drafts."""
