"""The program on the board: the integer head, the stream to the server, the local API."""

__version__ = "0.1.0"
