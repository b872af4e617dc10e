"""What values the tensors of a network take: histograms of activations, their ranges, covariances of layers' inputs."""
