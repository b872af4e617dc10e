"""Statistics of a network's tensors: activation histograms, their ranges, and covariances of layer inputs."""
