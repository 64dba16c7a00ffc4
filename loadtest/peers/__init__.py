"""Peers of convserve: servers of the same model, each written as its own documentation does, and upper bounds."""

AS_INSTALLED = "as installed"  # instead of a precision: each server and runtime chooses its own
