"""From a request to a plan message: open models, the planner's inputs, and the answer."""
