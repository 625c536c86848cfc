"""Redis: its keys, its records and streams, the scripts that write them, and the connections to it."""
