"""The hashtags of the live notes, how their use changes, and the rules for suggesting them."""
