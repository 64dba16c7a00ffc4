"""Landscape: every ImageNet network timed on this machine, beside its published accuracy."""
