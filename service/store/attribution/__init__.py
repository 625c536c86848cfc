"""What was answered to whom, as far as reports and experiments need it."""
