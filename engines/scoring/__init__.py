"""Answers to many pictures at once, without HTTP: the command `score`."""
