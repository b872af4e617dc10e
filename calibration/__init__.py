"""A trained model becomes a calibrated bundle: import, cuts, observation, weight quantization, lowering, accuracy."""
