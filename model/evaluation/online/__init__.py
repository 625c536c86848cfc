"""What readers did with what was shown to them."""
