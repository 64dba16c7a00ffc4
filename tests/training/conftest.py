"""Fixture of the trainings' tests."""

from __future__ import annotations

import pytest

from tests.warm import read_digits_once


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once() -> None:
    """Read the text from which every command in this process makes mnist5k, once instead of a second each time."""
    read_digits_once()
