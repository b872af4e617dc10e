"""The server's HTTP interface: routes, access log, metrics."""
