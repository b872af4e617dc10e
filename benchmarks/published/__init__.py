"""What others measured on Arm boards, and the model that learns from it how far real programs stay below the roofline.

`data` reads the measurements, `networks` holds the layers of the networks, `roofline` the limits of a run, `shares` the
model.
"""
