"""The remote peer: planner, segments, tails, model store."""
