"""A program as a systemd service: names and text of its unit (`unit`), installation (`install`), state (`status`),
readiness and watchdog (`notify`).
"""
