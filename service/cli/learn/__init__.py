"""The command that turns what readers did into a better model, and its steps."""
