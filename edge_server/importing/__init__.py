"""The float model before its calibration: preprocessing, and a first look at its answers."""
