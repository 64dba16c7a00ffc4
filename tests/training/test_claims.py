"""The lecture's claims: networks that differ in one thing, and the tables in docs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.complexity import complexity
from models.stochastic_depth import StochasticBlock
from training.bench import LOOPS, measure
from training.claims import CARDS, CLAIMS, SEEDS, table, write_pictures
from training.results import read

DOCS = Path("docs")


def test_the_networks_differ_in_one_thing() -> None:
    costs = {name: complexity(card, (3, 32, 32), 10) for name, card in CARDS.items()}
    for plain, residual in (("plain20", "resnet20_cifar"), ("plain56", "resnet56_cifar")):
        assert costs[plain].params == costs[residual].params
        assert costs[plain].macs == costs[residual].macs
    assert costs["preact_resnet56"].params == costs["resnet56_cifar"].params
    assert costs["resnet56_sd"].params == costs["resnet56_cifar"].params
    assert costs["se_resnet20"].params > costs["resnet20_cifar"].params
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    answers = {}
    for name in ("resnet56_cifar", "resnet56_sd", "plain56"):
        torch.manual_seed(1)
        net = CARDS[name].build(10).eval()
        for module in net.modules():
            if isinstance(module, StochasticBlock):
                module.survival = 1.0
        answers[name] = net(x)
    torch.testing.assert_close(answers["resnet56_sd"], answers["resnet56_cifar"])
    assert not torch.allclose(answers["plain56"], answers["resnet56_cifar"])


def test_the_lecture_has_the_tables_of_the_committed_results(tmp_path: Path) -> None:
    results, lecture = read(DOCS / "claims.jsonl"), (DOCS / "lecture.md").read_text()
    assert {(result.architecture, result.seed) for result in results} == {
        (name, seed) for name in CARDS for seed in SEEDS
    }
    for claim in CLAIMS:
        assert table(claim, results) in lecture
        assert f"](claim_{claim.name}.png)" in lecture
        assert (DOCS / f"claim_{claim.name}.png").exists()
    write_pictures(results, tmp_path)
    assert len(list(tmp_path.glob("claim_*.png"))) == len(CLAIMS)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_measured(loop: str) -> None:
    speed = measure("lenet5_modern", loop, steps=2)
    assert speed.images_per_s > 0
    assert 0 < speed.input_share < 1
    assert speed.peak_mb > 100
