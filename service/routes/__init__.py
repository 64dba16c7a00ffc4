"""HTTP routes: classification, and models with their costs."""
