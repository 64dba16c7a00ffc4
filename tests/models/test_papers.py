"""Tests of sizes, depths and counts by layer against the tables of the papers and of the lecture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from models.complexity import trace
from models.googlenet import inception
from models.layers import Concat, ConvReLU
from models.zoo import ZOO
from tests.models.test_counts import COUNTS

Shape = tuple[int, ...]


@cache
def outputs(name: str) -> dict[str, Shape]:
    """Return the output shape of each module at the paper's input, without the batch."""
    shapes: dict[str, Shape] = {}
    card = ZOO[name]
    with torch.device("meta"), torch.no_grad():
        net = ZOO[name].build(card.classes).eval()
        for key, module in net.named_modules():
            module.register_forward_hook(lambda _, __, output, key=key: shapes.update({key: tuple(output.shape[1:])}))
        net(torch.empty(1, *card.input_shape))
    return shapes


CIFAR_STAGES = (32, 16, 8)
TRACES: dict[str, dict[str, Shape]] = {
    # Figure 2, and the lecture's table
    "alexnet": {
        **{"conv1": (96, 55, 55), "pool1": (96, 27, 27), "conv2": (256, 27, 27)},
        **{"pool2": (256, 13, 13), "conv3": (384, 13, 13), "conv4": (384, 13, 13), "conv5": (256, 13, 13)},
        **{"pool5": (256, 6, 6), "fc6": (4096,), "fc7": (4096,), "fc8": (1000,)},
    },
    # Figure 3
    "zfnet": {
        **{"conv1": (96, 110, 110), "pool1": (96, 55, 55), "conv2": (256, 26, 26), "pool2": (256, 13, 13)},
        **{"conv3": (384, 13, 13), "conv4": (384, 13, 13), "conv5": (256, 13, 13), "pool5": (256, 6, 6)},
    },
    "zfnet_wide": {"conv3": (512, 13, 13), "conv4": (1024, 13, 13), "conv5": (512, 13, 13), "pool5": (512, 6, 6)},
    # the author's Caffe definitions
    "nin_cifar10": {"0": (96, 32, 32), "1": (96, 16, 16), "3": (192, 16, 16), "4": (192, 8, 8), "6": (10, 8, 8)},
    "nin_imagenet": {
        **{"0": (96, 54, 54), "1": (96, 27, 27), "2": (256, 27, 27), "3": (256, 13, 13), "4": (384, 13, 13)},
        **{"5": (384, 6, 6), "7": (1000, 6, 6)},
    },
    # Table 1
    "googlenet": {
        **{"conv1": (64, 112, 112), "maxpool1": (64, 56, 56), "conv3": (192, 56, 56), "maxpool2": (192, 28, 28)},
        **{"inception3a": (256, 28, 28), "inception3b": (480, 28, 28), "maxpool3": (480, 14, 14)},
        **{"inception4a": (512, 14, 14), "inception4b": (512, 14, 14), "inception4c": (512, 14, 14)},
        **{"inception4d": (528, 14, 14), "inception4e": (832, 14, 14), "maxpool4": (832, 7, 7)},
        **{"inception5a": (832, 7, 7), "inception5b": (1024, 7, 7), "avgpool": (1024, 1, 1), "fc": (1000,)},
    },
    # Figure 5
    "inception_v2": {
        **{"features.conv1": (64, 112, 112), "features.maxpool1": (64, 56, 56), "features.conv3": (192, 56, 56)},
        **{"features.maxpool2": (192, 28, 28), "features.inception3a": (256, 28, 28)},
        **{"features.inception3b": (320, 28, 28), "features.inception3c": (576, 14, 14)},
        **{f"features.inception4{module}": (576, 14, 14) for module in "abcd"},
        **{"features.inception4e": (1024, 7, 7), "features.inception5b": (1024, 7, 7)},
    },
    # the squeezes of the authors' Caffe definition
    "se_inception": {
        f"features.gate{module}": (channels, size, size)
        for module, channels, size in (
            *(("3a", 256, 28), ("3b", 320, 28), ("3c", 576, 14), ("4a", 576, 14), ("4b", 576, 14)),
            *(("4c", 608, 14), ("4d", 608, 14), ("4e", 1056, 7), ("5a", 1024, 7), ("5b", 1024, 7)),
        )
    },
    # Figures 14 and 15
    "inception_resnet_v1": {
        **{"features.conv2d_1a": (32, 149, 149), "features.conv2d_2a": (32, 147, 147)},
        **{
            "features.conv2d_2b": (64, 147, 147),
            "features.maxpool_3a": (64, 73, 73),
            "features.conv2d_3b": (80, 73, 73),
        },
        **{"features.conv2d_4a": (192, 71, 71), "features.conv2d_5a": (256, 35, 35), "features.repeat": (256, 35, 35)},
        **{"features.mixed_6a": (896, 17, 17), "features.mixed_7a": (1792, 8, 8), "avgpool": (1792, 1, 1)},
    },
    # "Identity Mappings", Table 1, and fb.resnet.torch
    "preact_resnet200": {
        **{"conv1": (64, 112, 112), "maxpool": (64, 56, 56), "layer1": (256, 56, 56), "layer2": (512, 28, 28)},
        **{"layer3": (1024, 14, 14), "layer4": (2048, 7, 7), "norm": (2048, 7, 7)},
    },
    # Table 1 with k = 32
    "densenet264": {
        **{"features.conv0": (64, 112, 112), "features.pool0": (64, 56, 56), "features.denseblock1": (256, 56, 56)},
        **{"features.transition1": (128, 28, 28), "features.transition2": (256, 14, 14)},
        **{"features.transition3": (1152, 7, 7), "features.denseblock4": (2688, 7, 7)},
    },
}
# Channels of the stages at 32, 16 and 8 pixels.
WIDTHS = {
    **{f"resnet{depth}_cifar": (16, 32, 64) for depth in (20, 32, 44, 56, 110, 1202)},
    **{"resnet110_sd": (16, 32, 64), "preact_resnet110": (16, 32, 64)},
    **{"resnet164_cifar": (64, 128, 256), "preact_resnet164": (64, 128, 256), "preact_resnet1001": (64, 128, 256)},
    **{"wrn_16_8": (128, 256, 512), "wrn_28_10": (160, 320, 640)},
    **{"resnext29_8x64d": (256, 512, 1024), "resnext29_16x64d": (256, 512, 1024)},
}
TRACES |= {
    name: {f"layer{i + 1}": (widths[i], size, size) for i, size in enumerate(CIFAR_STAGES)}
    for name, widths in WIDTHS.items()
}
# Section 3: a layer adds k maps; a transition with compression halves the maps.
TRACES |= {
    name: {f"features.denseblock{i + 1}": (maps[i], size, size) for i, size in enumerate(CIFAR_STAGES)}
    for name, maps in {
        "densenet_40_12": (16 + 144, 160 + 144, 304 + 144),
        "densenet_100_24": (16 + 768, 784 + 768, 1552 + 768),
        "densenet_bc_100_12": (24 + 192, 108 + 192, 150 + 192),
        "densenet_bc_250_24": (48 + 984, 516 + 984, 750 + 984),
        "densenet_bc_190_40": (80 + 1240, 660 + 1240, 950 + 1240),
    }.items()
}


@pytest.mark.parametrize("name", TRACES)
def test_sizes_are_the_papers(name: str) -> None:
    assert {key: outputs(name)[key] for key in TRACES[name]} == TRACES[name]


def test_each_network_of_the_lecture_has_a_reference_or_a_trace() -> None:
    without = {name for name in COUNTS if not ZOO[name].weights} - TRACES.keys()
    assert without == {"lenet5", "lenet5_modern"}  # both in test_lenet.py


def layers_in_depth(name: str) -> int:
    """Count convolutions and linear layers on the main path: no shortcuts, squeezes or auxiliary heads."""
    with torch.device("meta"):
        net = ZOO[name].build(10)
    beside = ("downsample", ".gate.", "aux")
    return sum(
        isinstance(module, nn.Conv2d | nn.Linear) and not any(part in key for part in beside)
        for key, module in net.named_modules()
    )


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *(("alexnet", 8), ("zfnet", 8), ("vgg11", 11), ("vgg13", 13), ("vgg16", 16), ("vgg19", 19)),
        *(("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152)),
        *((f"resnet{depth}_cifar", depth) for depth in (20, 32, 44, 56, 110, 164, 1202)),
        *(("preact_resnet110", 110), ("preact_resnet164", 164), ("preact_resnet1001", 1001), ("preact_resnet200", 200)),
        *(("resnet110_sd", 110), ("se_resnet50", 50), ("se_resnet101", 101), ("se_resnet152", 152), ("senet154", 154)),
        *(("wide_resnet50_2", 50), ("resnext50_32x4d", 50), ("resnext101_64x4d", 101), ("resnext29_8x64d", 29)),
        *(("densenet121", 121), ("densenet161", 161), ("densenet169", 169), ("densenet201", 201)),
        *(("densenet_40_12", 40), ("densenet_bc_100_12", 100), ("densenet_bc_250_24", 250)),
    ],
)
def test_the_number_in_the_name_is_the_depth(name: str, depth: int) -> None:
    assert layers_in_depth(name) == depth


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        # The name counts 6n + 4: the first convolution, 6n in blocks, three shortcuts. The function skips the
        # shortcuts and adds the last layer.
        *(("wrn_16_8", 16 - 3 + 1), ("wrn_28_10", 28 - 3 + 1)),
        # Table 1's four blocks have 2 * (6 + 12 + 64 + 48) layers; five more are outside the blocks.
        ("densenet264", 265),
    ],
)
def test_depths_of_networks_whose_names_count_differently(name: str, depth: int) -> None:
    assert layers_in_depth(name) == depth


def test_googlenet_is_22_layers_deep() -> None:
    longest = 0  # number of layers on the longest path
    for name, module in ZOO["googlenet"].build(10).named_children():
        branches = module.children() if isinstance(module, Concat) else () if name.startswith("aux") else (module,)
        paths = [sum(isinstance(part, nn.Conv2d | nn.Linear) for part in branch.modules()) for branch in branches]
        longest += max(paths, default=0)
    assert longest == 22


# The following tests check the lecture's tables, which do not count biases.


def test_alexnet_is_the_lectures_table() -> None:
    with torch.device("meta"):
        state = ZOO["alexnet"].build(1000).state_dict()
    assert {key.removesuffix(".weight"): value.numel() for key, value in state.items() if key.endswith("weight")} == {
        "conv1": 11 * 11 * 3 * 96,  # "35K"
        "conv2": 256 * 48 * 25,  # two separate groups, as in CONV4 and CONV5
        "conv3": 384 * 256 * 9,
        "conv4": 384 * 192 * 9,
        "conv5": 256 * 192 * 9,
        "fc6": 4096 * 9216,
        "fc7": 4096 * 4096,
        "fc8": 1000 * 4096,
    }


def test_vgg16_is_the_lectures_table() -> None:
    with torch.device("meta"):
        layers, _ = trace(ZOO["vgg16"].build(1000).eval(), torch.empty(1, 3, 224, 224))
    weights = [layer.params - layer.output_shape[0] for layer in layers if layer.params]
    assert weights == [
        *(1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648),
        *(2_359_296,) * 5,
        *(102_760_448, 16_777_216, 4_096_000),
    ]
    assert sum(weights) == 138_344_128
    # The lecture's total, "24M * 4 bytes", is wrong: its rows sum to this number.
    assert sum(layer.output_bytes for layer in layers) // 4 + 3 * 224 * 224 == 15_237_608


def test_the_lectures_inception_modules() -> None:
    naive = Concat(
        one=nn.Conv2d(256, 128, 1),
        three=nn.Conv2d(256, 192, 3, padding=1),
        five=nn.Conv2d(256, 96, 5, padding=2),
        pool=nn.MaxPool2d(3, 1, 1),
    )
    reduced = inception((256, 128, 64, 192, 64, 96, 64), ConvReLU, 5)
    assert multiply_accumulates(naive) == ((672, 28, 28), 854_196_224)
    assert multiply_accumulates(reduced) == ((480, 28, 28), 271_351_808)  # not 358M: that counts the 3x3 twice


def multiply_accumulates(module: nn.Module) -> tuple[Shape, int]:
    """Return output shape and MACs of a module applied to 256 maps of 28x28."""
    x = torch.zeros(1, 256, 28, 28)
    layers, _ = trace(module, x)
    out: Tensor = module(x)
    return tuple(out.shape[1:]), sum(layer.macs for layer in layers)


def test_three_3x3_see_what_one_7x7_sees_with_fewer_weights() -> None:
    three = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)))
    layers, _ = trace(three, torch.zeros(1, 8, 20, 20))
    assert [layer.receptive_field for layer in layers] == [(3, 3), (5, 5), (7, 7)]
    assert sum(layer.params for layer in layers) == 27 * 8**2 < 49 * 8**2
