"""What goes wrong in training."""

from __future__ import annotations


class TrainingError(Exception):
    """What the user can mend; the message says how."""


class DataError(TrainingError):
    """A data set that is not there, or is not one."""


class RecipeError(TrainingError):
    """A value that no recipe can have."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged or not the one that is meant."""


class DivergedError(TrainingError):
    """A loss that is no number any more."""
