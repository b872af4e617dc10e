"""The server as a systemd service: unit file (`unit`), checks and installation (`install`)."""
