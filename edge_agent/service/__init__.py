"""The agent as a systemd service: unit file (`unit`), checks (`check`), installation (`install`), state (`status`),
readiness and watchdog (`notify`).
"""
