"""The agent as a systemd service: the unit (`unit`), what it needs (`check`), its installation (`install`), its state (`status`), readiness and watchdog
(`notify`).
"""
