"""What a board can do: the schema of a device profile, and the measurement."""
