"""The libraries that run a published model, behind one protocol."""
