"""The float model before calibration: preprocessing, and a quick check on a few samples."""
