"""Entropy coders, both rANS (range asymmetric numeral systems).

`static` codes the tensor at the cut with frequencies from calibration. `adaptive` codes the constants of a segment file
with frequencies that it counts on the way.
"""
