"""From data to a checkpoint to a published model."""
