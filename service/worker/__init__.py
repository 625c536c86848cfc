"""A worker process: takes jobs, runs the model, publishes what it predicts; and answers drafts."""
