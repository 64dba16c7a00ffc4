"""Tests of every architecture's forward and backward pass, also on small pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.densenet import DenseBlock, DenseLayer
from models.inception_resnet import ResidualInception
from models.layers import Concat, SqueezeExcitation, grid_mean
from models.preact_resnet import PreActBasicBlock, PreActResNet
from models.residual import OptionA
from models.stochastic_depth import AverageOptionA, StochasticBlock, StochasticDepthResNet
from models.zoo import ZOO
from tests.models.largest import without_the_largest


@pytest.mark.parametrize("name", without_the_largest(ZOO))
def test_each_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    card = ZOO[name]
    net = ZOO[name].build(10)
    for module in net.modules():
        if isinstance(module, StochasticBlock):
            module.survival = 1
    outputs = net(torch.randn(2, card.input_shape[0], card.small, card.small))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(logits.shape == (2, 10) for logits in outputs)
    sum(logits.square().sum() for logits in outputs).backward()
    without = [key for key, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def accepts(net: nn.Module, channels: int, edge: int) -> bool:
    """Return True if pictures of `edge` pixels pass, in training and in inference."""
    try:
        net.eval()(torch.empty(1, channels, edge, edge, device="meta"))
        if any(key.startswith("aux") for key, _ in net.named_children()):
            net.train()(torch.empty(2, channels, edge, edge, device="meta"))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", without_the_largest(ZOO, {"resnet1202_cifar", "preact_resnet1001"}))
@torch.no_grad()
def test_the_card_states_the_smallest_input(name: str) -> None:
    card = ZOO[name]
    with torch.device("meta"):
        net = ZOO[name].build(10)
    edge = card.smallest
    assert accepts(net, card.input_shape[0], edge)
    assert edge == 1 or not accepts(net, card.input_shape[0], edge - 1)
    assert edge <= card.small <= card.input_shape[1]


@pytest.mark.parametrize("name", [name for name, card in ZOO.items() if card.family in {"alexnet", "zfnet", "vgg"}])
def test_at_the_papers_input_the_adaptive_pool_changes_nothing(name: str) -> None:
    with torch.device("meta"):
        net = ZOO[name].build(10).eval()
        pool = net.get_submodule("adapt" if hasattr(net, "adapt") else "avgpool")
        seen: list[tuple[Tensor, Tensor]] = []
        pool.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        net(torch.empty(1, *ZOO[name].input_shape))
    ((before, after),) = seen
    assert before.shape == after.shape
    x = torch.randn(before.shape)
    assert torch.equal(nn.AdaptiveAvgPool2d(x.shape[-1])(x), x)


def test_the_auxiliary_heads_pool_is_the_papers_where_it_fits() -> None:
    googlenet, v3, small = torch.randn(1, 3, 14, 14), torch.randn(1, 3, 17, 17), torch.randn(1, 3, 2, 2)
    assert torch.equal(grid_mean(googlenet, kernel=5, stride=3, grid=4), F.avg_pool2d(googlenet, 5, 3))
    assert torch.equal(grid_mean(v3, kernel=5, stride=3, grid=5), F.avg_pool2d(v3, 5, 3))
    assert grid_mean(small, kernel=5, stride=3, grid=4).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(("name", "heads"), [("googlenet", 2), ("googlenet_bn_tv", 2), ("inception_v3", 1)])
def test_auxiliary_heads_answer_in_training_only(name: str, heads: int) -> None:
    net, x = ZOO[name].build(10), torch.randn(2, 3, ZOO[name].small, ZOO[name].small)
    assert len(net(x)) == 1 + heads
    calls: list[str] = []
    for key, module in net.named_children():
        module.register_forward_hook(lambda *_, key=key: calls.append(key))
    assert isinstance(net.eval()(x), Tensor)
    assert not any(key.startswith("aux") for key in calls)


def test_option_a_subsamples_and_appends_zeros() -> None:
    x = torch.randn(1, 2, 4, 4)
    out = OptionA(2, 4, 2)(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()
    assert out.shape == (1, 4, 2, 2)


def test_the_average_option_a_averages_2x2_pixels_and_appends_zeros() -> None:
    x = torch.randn(1, 2, 4, 4)
    out = AverageOptionA(2, 4, 2)(x)
    assert torch.equal(out[:, :2], F.avg_pool2d(x, 2))
    assert not out[:, 2:].any()


def test_survival_falls_linearly_to_a_half() -> None:
    net = ZOO["resnet110_sd"].build(10)
    survival = [module.survival for module in net.modules() if isinstance(module, StochasticBlock)]
    assert survival[0] == 1 - 1 / 54 * 0.5
    assert survival[-1] == 0.5
    assert sum(survival) == pytest.approx((3 * 54 - 1) / 4)  # 40.25 of 54 blocks on average


def test_a_dropped_block_is_dropped_for_the_whole_batch_and_not_rescaled() -> None:
    torch.manual_seed(0)
    block, x = StochasticBlock(8, 8, 1), torch.randn(4, 8, 6, 6)
    block.survival = 0.3
    kept, dropped = F.relu(block.residual(x) + x), F.relu(x)
    outcomes = [block(x) for _ in range(2000)]
    share = sum(torch.allclose(out, kept) for out in outcomes) / len(outcomes)
    assert share == pytest.approx(0.3, abs=0.05)  # five standard deviations
    assert all(torch.allclose(out, kept) or torch.equal(out, dropped) for out in outcomes)


def test_in_inference_a_residual_is_scaled_by_its_survival() -> None:
    block, x = StochasticBlock(8, 8, 1).eval(), torch.randn(4, 8, 6, 6)
    block.survival = 0.3
    assert torch.equal(block(x), F.relu(0.3 * block.residual(x) + x))


def test_a_dropped_block_has_no_gradient() -> None:
    net = StochasticDepthResNet(10, (1, 1, 1), last=0.5)
    last = next(module for key, module in net.named_modules() if key == "layer3.0")
    assert isinstance(last, StochasticBlock)
    last.survival = 0
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert last.conv1.weight.grad is None
    assert net.conv1.weight.grad is not None


def test_squeeze_and_excitation_is_the_papers_formula() -> None:
    block, u = SqueezeExcitation(32), torch.randn(2, 32, 5, 5)
    z = u.mean((2, 3))
    s = torch.sigmoid(
        F.linear(
            F.relu(F.linear(z, block.fc1.weight.flatten(1), block.fc1.bias)),
            block.fc2.weight.flatten(1),
            block.fc2.bias,
        )
    )
    assert block.fc1.out_channels == 2
    assert torch.allclose(block(u), u * s[:, :, None, None], atol=1e-6)


def test_a_preactivated_blocks_identity_path_is_untouched() -> None:
    block, x = PreActBasicBlock(8, 8, 1), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x)


def test_where_the_shape_changes_the_shortcut_starts_after_the_activation() -> None:
    block, x = PreActBasicBlock(8, 16, 2), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), block.downsample(F.relu(block.bn1(x))))


def test_the_first_preactivated_block_shares_the_stems_activation() -> None:
    net = PreActResNet(10, PreActBasicBlock, (1, 1, 1))
    assert isinstance(net.get_submodule("layer1.0.bn1"), nn.Identity)
    assert isinstance(net.get_submodule("layer2.0.bn1"), nn.BatchNorm2d)


def test_a_dense_layer_reads_all_earlier_outputs() -> None:
    block = DenseBlock({f"{i}": DenseLayer(4 + 2 * i, 2, bottleneck=True) for i in range(3)})
    x = torch.randn(1, 4, 5, 5)
    out = block(x)
    assert out.shape[1] == 4 + 3 * 2
    assert torch.equal(out[:, :4], x)


def test_an_inception_residual_is_scaled_before_the_addition() -> None:
    block, x = ResidualInception(4, 4, 0.1, branch=nn.Identity()), torch.randn(1, 4, 3, 3)
    assert torch.allclose(block(x), F.relu(x + 0.1 * block.conv2d(x)))
    assert block.conv2d.bias is not None


def test_branches_are_concatenated_in_order() -> None:
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(Concat(a=nn.ReLU(), b=nn.Identity())(x), torch.cat([F.relu(x), x], 1))
