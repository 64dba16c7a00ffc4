"""What each model gives and costs under load, over HTTP."""
