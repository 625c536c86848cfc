"""Sockets, and admission: who is let in, and what is refused before it costs anything."""
