"""Rounds weights to integers of 2 to 8 bits."""
