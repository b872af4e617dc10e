"""Calibration samples: images, arrays and texts, with their labels."""
