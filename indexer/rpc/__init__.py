"""Calls between our processes: frames, both ends, and which trace a call belongs to."""
