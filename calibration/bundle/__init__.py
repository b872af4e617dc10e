"""The calibrated bundle of a model, and the cache of calibrations."""
