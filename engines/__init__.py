"""From a published model to an engine that runs it."""
