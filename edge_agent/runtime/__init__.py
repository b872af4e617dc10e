"""The running agent: `agent` answers callers' frames, `stage` those of the board before it, `engine` runs one plan's head."""
