"""The commands that say which model answers whom."""
