"""The server's HTTP API: routes, access log, metrics."""
