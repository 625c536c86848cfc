"""What the service holds, brought to safety and back; and events, brought out to learn from."""
