"""Peers of convserve: servers of the same model, each written as its own documentation does, and upper bounds."""
