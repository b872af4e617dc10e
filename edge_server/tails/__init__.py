"""The rest of the network, behind the cut: ONNX Runtime sessions, their threads and their times."""
