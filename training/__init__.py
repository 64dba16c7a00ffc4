"""Training: data sets, recipes, the training loop, checkpoints, and publishing."""
