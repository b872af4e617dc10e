"""Short programs that use the agent from Python."""
