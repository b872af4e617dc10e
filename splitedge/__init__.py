"""What board and server share: errors, bounds, files, the protocol, the codec, the head, the link."""

__version__ = "0.1.0"
