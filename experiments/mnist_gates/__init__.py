"""Gates as a fixed first layer on MNIST: where gradients are, and which images are fooled."""
