"""Lowers a graph with ranges and integer weights to a segment.

`layers` defines the operators; `lower` writes the file.
"""
