"""A graph with ranges and integer weights becomes a segment. `layers` knows the operators, `lower` writes the file."""
