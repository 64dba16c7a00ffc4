"""Tests of costs, each against a number from an independent source."""

from __future__ import annotations

import gzip
import json
from functools import cache

import pytest
import torch
from torch import nn

from models.__main__ import describe
from models.complexity import complexity, trace
from models.cost import Complexity
from models.layers import Concat, SqueezeExcitation
from models.zoo import ZOO
from service.architectures import CARDS, LAYERS

# The lecture's architectures, each of which the zoo must have; a further architecture needs no row here.
# Parameters, MACs and activations at the paper's input and classes, from the networks of torchvision, timm and the
# authors (Caffe), or, where there is none, from a second implementation written from the paper.
COUNTS = {
    "lenet5": (60_000, 325_680, 6_508),
    "lenet5_modern": (61_706, 416_520, 6_518),
    "alexnet": (60_965_224, 724_406_816, 659_272),
    "alexnet_owt": (61_100_840, 714_188_480, 494_184),
    "zfnet": (62_357_608, 1_168_032_896, 1_516_904),
    "zfnet_wide": (107_627_624, 2_476_704_896, 1_689_960),
    "vgg11": (132_863_336, 7_609_090_048, 7_435_240),
    "vgg11_bn": (132_868_840, 7_609_090_048, 7_435_240),
    "vgg13": (133_047_848, 11_308_466_176, 12_252_136),
    "vgg13_bn": (133_053_736, 11_308_466_176, 12_252_136),
    "vgg16": (138_357_544, 15_470_264_320, 13_556_712),
    "vgg16_bn": (138_365_992, 15_470_264_320, 13_556_712),
    "vgg19": (143_667_240, 19_632_062_464, 14_861_288),
    "vgg19_bn": (143_678_248, 19_632_062_464, 14_861_288),
    "nin_cifar10": (966_986, 222_486_528, 631_424),
    "nin_imagenet": (7_595_176, 1_100_188_800, 1_704_096),
    "googlenet": (6_998_552, 1_582_671_872, 3_227_160),
    "googlenet_bn_tv": (6_624_904, 1_498_376_192, 3_227_160),
    "inception_v2": (11_194_984, 2_018_851_840, 3_725_000),
    "inception_v3": (23_834_568, 5_713_216_096, 8_968_488),
    "inception_v4": (42_679_816, 12_253_974_624, 15_090_184),
    "inception_resnet_v1": (22_756_328, 6_206_361_696, 13_134_648),
    "inception_resnet_v2": (55_843_464, 13_155_794_016, 25_059_976),
    "resnet18": (11_689_512, 1_814_073_344, 2_484_712),
    "resnet34": (21_797_672, 3_663_761_408, 3_739_112),
    "resnet50": (25_557_032, 4_089_184_256, 11_114_984),
    "resnet101": (44_549_160, 7_801_405_440, 16_232_936),
    "resnet152": (60_192_808, 11_513_626_624, 22_555_112),
    "resnet20_cifar": (269_722, 40_551_040, 188_426),
    "resnet32_cifar": (464_154, 68_862_592, 303_114),
    "resnet44_cifar": (658_586, 97_174_144, 417_802),
    "resnet56_cifar": (853_018, 125_485_696, 532_490),
    "resnet110_cifar": (1_727_962, 252_887_680, 1_048_586),
    "resnet1202_cifar": (19_421_274, 2_829_238_912, 11_485_194),
    "resnet164_cifar": (1_704_154, 244_500_992, 3_227_658),
    "preact_resnet110": (1_727_962, 252_887_680, 1_048_586),
    "preact_resnet164": (1_703_258, 244_500_992, 3_227_658),
    "preact_resnet1001": (10_327_706, 1_487_849_984, 19_226_634),
    "preact_resnet200": (64_666_152, 15_007_481_856, 32_188_904),
    "se_resnet50": (28_088_024, 3_860_488_192, 10_604_184),
    "se_resnet101": (49_326_872, 7_574_937_600, 15_740_632),
    "se_resnet152": (66_821_848, 11_288_993_792, 22_079_128),
    "se_resnext50_32x4d": (27_559_896, 4_232_994_816, 14_417_560),
    "se_resnext101_32x4d": (48_955_416, 7_974_739_968, 21_259_992),
    "se_inception": (11_931_622, 2_033_239_424, 3_744_582),
    "senet154": (115_088_984, 20_688_363_520, 38_687_384),
    "resnet110_sd": (1_727_962, 252_887_680, 1_048_586),
    "wrn_16_8": (10_961_370, 1_548_145_664, 1_163_274),
    "wrn_28_10": (36_479_194, 5_243_328_768, 2_596_874),
    "wide_resnet50_2": (68_883_240, 11_398_021_120, 14_401_512),
    "wide_resnet101_2": (126_886_696, 22_753_050_624, 21_225_448),
    "densenet121": (7_978_856, 2_834_161_664, 6_900_200),
    "densenet161": (28_681_000, 7_727_907_072, 11_064_808),
    "densenet169": (14_149_480, 3_359_843_328, 7_301_608),
    "densenet201": (20_013_928, 4_291_365_888, 7_853_544),
    "densenet264": (33_337_704, 5_751_653_376, 8_530_920),
    "densenet_bc_100_12": (769_162, 287_929_692, 1_463_818),
    "densenet_bc_190_40": (25_624_430, 9_301_945_740, 9_333_770),
    "densenet_40_12": (1_019_722, 264_812_928, 451_594),
    "densenet_100_24": (27_249_082, 6_889_347_744, 2_248_714),
    "densenet_bc_250_24": (15_324_406, 5_418_785_724, 7_382_026),
    "resnext50_32x4d": (25_028_904, 4_230_479_872, 14_401_512),
    "resnext101_32x4d": (44_177_704, 7_969_996_800, 21_225_448),
    "resnext101_64x4d": (83_455_272, 15_460_270_080, 31_210_472),
    "resnext101_32x8d": (88_791_336, 16_414_015_488, 31_210_472),
    "resnext29_8x64d": (34_426_698, 5_387_266_048, 8_585_226),
    "resnext29_16x64d": (68_155_210, 10_688_866_304, 15_269_898),
}
# Parameters of networks in training.
WITH_AUXILIARY_HEADS = {"googlenet": 13_378_280, "googlenet_bn_tv": 13_004_888, "inception_v3": 27_161_264}
# Height and width of the receptive field of the last features, from Araujo, Norris, Sim, "Computing Receptive Fields of
# Convolutional Neural Networks", Distill 2019.
RECEPTIVE_FIELDS = {
    "alexnet_owt": 195,
    "vgg16": 212,
    "inception_v2": 699,
    "inception_v3": 1311,
    "inception_v4": 2071,
    "inception_resnet_v2": 3039,
}


@cache
def cost(name: str) -> Complexity:
    return complexity(ZOO[name])


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_exact(name: str) -> None:
    assert (cost(name).params, cost(name).macs, cost(name).activations) == COUNTS[name]


@pytest.mark.parametrize("name", ZOO)
def test_no_parameter_is_missed(name: str) -> None:
    with torch.device("meta"):
        net = ZOO[name].build(ZOO[name].classes)
    expected = WITH_AUXILIARY_HEADS.get(name, cost(name).params)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    in_training = sum(parameter.numel() for key, parameter in net.named_parameters() if key.startswith("aux"))
    assert cost(name).params == expected - in_training


@pytest.mark.parametrize("name", RECEPTIVE_FIELDS)
def test_receptive_fields_match_published_values(name: str) -> None:
    before_the_mean = [
        layer.receptive_field
        for layer in cost(name).layers
        if len(layer.output_shape) == 3 and not layer.name.endswith("avgpool")
    ]
    assert tuple(map(max, zip(*before_the_mean, strict=True))) == (RECEPTIVE_FIELDS[name],) * 2


def test_a_squeeze_reads_the_whole_map() -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3), SqueezeExcitation(16), nn.Conv2d(16, 16, 3), SqueezeExcitation(16))
    layers, _ = trace(net, torch.zeros(1, 16, 12, 12))
    fields = {layer.name: layer.receptive_field[0] for layer in layers}
    assert fields == {
        **{"0": 3, "1.avg_pool": 3 + 9, "1.fc1": 12, "1.fc2": 12},
        **{"2": 12, "3.avg_pool": 12, "3.fc1": 12, "3.fc2": 12},
    }
    assert cost("se_inception").layers[-1].receptive_field == cost("inception_v2").layers[-1].receptive_field


def test_peak_memory_counts_the_tensors_alive_at_once() -> None:
    # VGG-16's first two outputs are 64 maps of 224x224 each; ReLUs are in place, and the picture is freed by then.
    assert cost("vgg16").peak_bytes == 2 * 4 * 64 * 224 * 224
    # ResNet-50's first bottleneck holds 256 maps of the residual, 64 maps of its input, and 256 maps of the projection.
    assert cost("resnet50").peak_bytes == 4 * (2 * 256 + 64) * 56 * 56
    # The last concatenation of the first dense block holds 148 maps, 12 new maps, and both concatenated.
    assert cost("densenet_40_12").peak_bytes == 4 * (148 + 12 + 160) * 32 * 32
    # AlexNet's first layer holds the picture and 96 maps of 55x55, which are then normalised in place.
    assert cost("alexnet").peak_bytes == 4 * (3 * 227 * 227 + 96 * 55 * 55)
    # A gate holds its 16 maps while their means are squeezed to one value and back.
    _, peak = trace(SqueezeExcitation(16), torch.zeros(1, 16, 5, 5))
    assert peak == 4 * (16 * 25 + 16 + 1)
    # Two branches of 2 and 3 maps are held together with the concatenation of both.
    net = Concat(a=nn.Conv2d(1, 2, 1), b=nn.Conv2d(1, 3, 1))
    assert trace(net, torch.zeros(1, 1, 5, 5))[1] == 4 * (5 + 5) * 25


def test_intensity_by_hand() -> None:
    # Weights, inputs and outputs (6,508) of LeNet-5's convolutions and F6.
    weights = 156 + 1_516 + 48_120 + 10_164
    inputs = 1_024 + (18 + 36 + 6) * 14 * 14 + 400 + 120
    assert cost("lenet5").intensity == round(2 * 325_680 / (4 * (weights + inputs + 6_508)), 2)


def test_bytes_are_float32() -> None:
    assert cost("lenet5").param_bytes == 240_000
    assert cost("lenet5").layers[0].input_bytes == 4 * 32 * 32
    assert cost("lenet5").layers[0].output_bytes == 4 * 6 * 28 * 28


def test_a_smaller_input_costs_less_and_has_the_same_parameters() -> None:
    small, paper = complexity(ZOO["senet154"], (3, 64, 64), 10), cost("senet154")
    assert small.macs < paper.macs / 10
    assert paper.params - small.params == 990 * (2048 + 1)


def test_an_unknown_architecture_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ZOO["lenet6"].build(10)


def test_the_services_files_match_the_costs_of_the_networks() -> None:
    layers = map(json.loads, gzip.decompress(LAYERS.read_bytes()).splitlines())
    stored = [card | costs for card, costs in zip(json.loads(CARDS.read_bytes()), layers, strict=True)]
    counted = [describe(card, cost(card.name)) for card in ZOO.values()]
    assert stored == json.loads(json.dumps(counted)), "run `make architectures`"


def test_macs_of_a_grouped_convolution_by_hand() -> None:
    (layer,), _ = trace(nn.Sequential(nn.Conv2d(8, 4, 3, groups=2)), torch.zeros(1, 8, 5, 5))
    assert layer.macs == (4 * 3 * 3) * (4 * 3 * 3)  # outputs, times the inputs of each
    assert layer.params == 4 * (4 * 3 * 3 + 1)


def test_a_layer_without_parameters_is_listed_if_it_moves_a_window_or_normalises() -> None:
    net = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.LocalResponseNorm(5), nn.ReLU(), nn.Dropout(), nn.Flatten())
    layers, _ = trace(net, torch.zeros(1, 8, 5, 5))
    assert [layer.type for layer in layers] == ["MaxPool2d", "LocalResponseNorm"]


def test_receptive_fields_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, (1, 3)), nn.Conv2d(1, 1, 3, dilation=2), nn.MaxPool2d(2))
    layers, _ = trace(net, torch.zeros(1, 1, 40, 40))
    assert [layer.receptive_field for layer in layers] == [(3, 3), (3, 7), (11, 15), (13, 17)]
    assert [layer.kernel for layer in layers] == [(3, 3), (1, 3), (3, 3), (2, 2)]
