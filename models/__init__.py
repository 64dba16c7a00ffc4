"""Architectures of the lecture, and their computational costs."""
