"""The HTTP service: imports engines, never torch."""
