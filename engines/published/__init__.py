"""What passes from training to serving: a published model and its files."""
