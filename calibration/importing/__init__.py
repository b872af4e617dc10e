"""Converts a trained model to a simplified ONNX graph with the same answers. The entry point is `importer.load`."""
