"""mnist5k is real, split once, and the same for ever."""

from __future__ import annotations

import hashlib

import numpy as np

from training.data import DataSet


def test_four_thousand_to_train_and_a_thousand_held_out_evenly(digits: DataSet) -> None:
    assert np.bincount(digits.train.targets).tolist() == [400] * 10
    assert np.bincount(digits.held_out.targets).tolist() == [100] * 10


def test_no_held_out_picture_is_trained_on(digits: DataSet) -> None:
    held_out = {picture.tobytes() for picture in digits.held_out.pictures}
    assert len(held_out) == 1000
    assert not held_out & {picture.tobytes() for picture in digits.train.pictures}


def test_the_split_is_the_one_that_published_accuracies_speak_of(digits: DataSet) -> None:
    digest = hashlib.sha256(digits.held_out.pictures.tobytes() + digits.held_out.targets.tobytes()).hexdigest()
    assert digest.startswith("eceb9c013d977c80")
