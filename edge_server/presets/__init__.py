"""Models that Python packages carry, ready for `edge-server add NAME`."""
