"""Calls between processes: frames, client and server, and the trace that a call belongs to."""
