"""Calls between processes: frames, client and server, the secret that both know, and the trace of a call."""
