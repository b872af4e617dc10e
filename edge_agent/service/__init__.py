"""The agent as a systemd service: the unit (`unit`), its installation (`install`), readiness and watchdog (`notify`)."""
