"""Turns a trained model into a calibrated bundle: import, cuts, statistics, weight rounding, lowering, accuracy."""
