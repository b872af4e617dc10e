"""How a board gets its plan, and what it keeps between starts: segments, its profile, measured times."""
