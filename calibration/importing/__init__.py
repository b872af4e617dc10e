"""A trained model becomes a simplified ONNX graph that still answers as the file did. `importer.load` is the entry."""
