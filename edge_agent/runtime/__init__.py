"""The running agent: `Agent` for callers' frames, `StageServer` for a later board of a chain, and the frame pipeline
that both share.
"""
