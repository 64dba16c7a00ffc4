"""Engines: published models, the runtimes that run them, and measurements of both on this machine."""
