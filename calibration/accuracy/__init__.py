"""Models the noise that layer and codec bits add to a model's output, and the accuracy drop that it causes."""
