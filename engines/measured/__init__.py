"""Measurements of engines on this machine."""
