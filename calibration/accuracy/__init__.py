"""The noise that bits of layers and codecs put on a model's output, and the accuracy that this noise costs."""
