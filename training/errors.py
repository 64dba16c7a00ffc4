"""Errors of training and publishing, which a user can resolve."""

from __future__ import annotations


class TrainingError(Exception):
    """Error that the user can resolve; the message says how."""


class DataError(TrainingError):
    """Data set that is missing or malformed."""


class RecipeError(TrainingError):
    """Name or value that no recipe can have."""


class CheckpointError(TrainingError):
    """Checkpoint that is missing, damaged or of another network."""


class DivergedError(TrainingError):
    """Training loss that has become NaN or infinite."""


class MachineError(TrainingError):
    """Machine that lacks space, memory, a right to write, or a program."""
