"""`edge-agent bench`: how fast whole models run on this board, by backend and number of threads.

cases.py        what to measure: model files, backends, threads
worker.py       a process that runs one configuration; it holds one runtime
feed.py         inputs of noise, or made from frames
measuring.py    starts workers, gives them turns, and collects their times
fidelity.py     how near the answers of a backend are to those of the float model
results.py      the result file: its schema, reading and writing
statistics.py   summaries of times, and what changed between two results
render.py       results as tables, Markdown and CSV

Our kernels and their rivals are measured alike: each configuration runs in processes of its own, in several rounds, and
within a round the configurations take turns, so that a machine whose speed drifts slows all alike.
"""
