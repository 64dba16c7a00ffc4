"""The HTTP service: imports engines, never torch."""

VERSION = "0.2.0"  # of convserve, as in pyproject.toml
