"""A whole network in the formats of other runtimes, to compare with: our segment, int8 ONNX and .tflite.

`whole` makes all of them from one model. The weights have 8 bits, and calibration on noise is enough to measure speed.
"""
