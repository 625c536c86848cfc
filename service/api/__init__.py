"""HTTP in, a use case, HTTP out. Knows no socket: see `service.server`."""
