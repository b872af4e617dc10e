"""Tails: the rest of the network in ONNX Runtime."""
