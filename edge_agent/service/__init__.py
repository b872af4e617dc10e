"""The agent as a systemd service: unit file (`unit`), checks (`check`), installation (`install`)."""
