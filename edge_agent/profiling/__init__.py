"""`edge-agent profile` beyond the measurement of `device_profiles`.

backends.py     the time of each backend on the reference network
comparison.py   what changed between two profiles
roofline.py     kernels and operators below the roofs of the board
formats.py      a profile as Markdown, CSV and JSON
"""
