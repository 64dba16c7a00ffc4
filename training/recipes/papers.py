"""Recipes of the papers, as far as one process can repeat them; `source` says what is left out.

An architecture's card names its recipe here (`Architecture.recipe`).
"""

from __future__ import annotations

from dataclasses import replace

from training.recipes.recipe import Recipe

LENET5 = Recipe(
    source="LeNet-5's paper, sections II and III: 20 passes, images one by one, rates 5e-4 to 1e-5. Left out: the "
    "Levenberg-Marquardt step for each weight, whose 1 / (h + 0.02) is here its largest, 50, for all of them; "
    "the falls of 0.4, 0.5, 0.5, 0.2 are 0.4 each",
    mean=(0.1 / 1.275,),
    std=(1 / 1.275,),
    momentum=0,
    lr=50 * 5e-4,
    schedule="steps",
    drops=(2 / 20, 5 / 20, 8 / 20, 12 / 20),
    factor=0.4,
    weight_decay=0,
    batch=1,
    epochs=20,
    loss="map",
    precision="fp32",
)
ALEXNET = Recipe(
    source="AlexNet's paper, section 5. Left out: crops' mean at test; the rate was lowered by hand",
    lr=0.01,
    schedule="plateau",
    weight_decay=5e-4,
    batch=128,
    epochs=90,
    init_std=0.01,
    init_ones=("conv2", "conv4", "conv5", "fc6", "fc7"),
    dropout=0.5,
    shorter_edge=(256, 256),
    lighting=0.1,
    flip=True,
)
ZFNET = replace(
    ALEXNET,
    source="ZFNet's paper, section 3. Left out: filters renormalised to an RMS of 0.1; ten fixed crops are random "
    "ones. Weight decay is not stated: AlexNet's",
    epochs=70,
    init_ones=(),
    lighting=0,
)
VGG = Recipe(
    source="VGG's paper, section 3.1. Left out: A starts from a variance of 0.01, which makes logits of millions, B "
    "to E from A's weights: here all from He's; colour shift is AlexNet's",
    lr=0.01,
    schedule="plateau",
    weight_decay=5e-4,
    batch=256,
    epochs=74,
    dropout=0.5,
    shorter_edge=(256, 512),
    lighting=0.1,
    flip=True,
)
TORCHVISION = Recipe(
    source="torchvision's references/classification",
    lr=0.1,
    schedule="steps",
    drops=(1 / 3, 2 / 3),
    weight_decay=1e-4,
    batch=256,
    epochs=90,
    area=(0.08, 1),
    flip=True,
)
NIN_CIFAR = Recipe(
    source="NiN's paper, section 4, and its author's Caffe solver. Left out: contrast normalisation and whitening; a "
    "tenth of the rate for the last 1x1",
    lr=0.1,
    schedule="plateau",
    weight_decay=1e-4,
    batch=128,
    epochs=300,
    falls=2,
    init_std=0.05,
    dropout=0.5,
    shift=4,
    flip=True,
)
NIN_IMAGENET = replace(
    ALEXNET,
    source="its author's Caffe solver: 450,000 steps. Its initial 0.01 and 0.05 by layer are He's here",
    schedule="steps",
    drops=(4 / 9, 8 / 9),
    batch=64,
    epochs=22,
    init_std=None,
    init_ones=(),
    dropout=None,
    lighting=0,
)
GOOGLENET = Recipe(
    source="GoogLeNet's paper, sections 5 and 6; batch, rate and weight decay of BVLC's Caffe solver. Left out: "
    "asynchronous workers, weight averaging; jitter stands for its photometric distortions",
    lr=0.01,
    schedule="exponential",
    factor=0.995,  # 4 % every 8 epochs
    weight_decay=2e-4,
    batch=32,
    epochs=60,
    area=(0.08, 1),
    jitter=0.4,
    flip=True,
)
INCEPTION_V2 = replace(
    GOOGLENET,
    source="BN-Inception's paper, section 4.2.1: x5, 5 times the rate, decay 6 times as fast, a fifth of the weight "
    "decay, less distortion. Left out: asynchronous workers",
    lr=0.0075,
    factor=0.97,
    weight_decay=4e-5,
    jitter=0.2,
)
INCEPTION_V3 = Recipe(
    source="Inception v3's paper, section 8; weight decay of TF-Slim. Left out: 50 workers, weight averaging, "
    "truncated initial weights; TensorFlow's RMSProp has its epsilon under the root",
    optimizer="rmsprop",
    lr=0.045,
    schedule="exponential",
    factor=0.94**0.5,  # every two epochs
    weight_decay=4e-5,
    clip=2,
    batch=32,
    epochs=100,
    label_smoothing=0.1,
    area=(0.08, 1),
    jitter=0.4,
    flip=True,
)
INCEPTION_V4 = replace(
    INCEPTION_V3,
    source="Inception v4's paper, section 5; the rest as Inception v3's. Left out: 20 workers, weight averaging",
    clip=None,
)
RESNET = Recipe(
    source="ResNet's paper, section 3.4. 120 epochs are its 600,000 steps. Left out: the mean of each pixel",
    lr=0.1,
    schedule="plateau",
    weight_decay=1e-4,
    batch=256,
    epochs=120,
    shorter_edge=(256, 480),
    lighting=0.1,
    flip=True,
)
RESNET_CIFAR = Recipe(
    source="ResNet's paper, section 4.2: 64,000 steps. Without the subtraction of a mean for each pixel",
    lr=0.1,
    schedule="steps",
    drops=(0.5, 0.75),
    weight_decay=1e-4,
    batch=128,
    epochs=164,
    shift=4,
    flip=True,
)
WARMED_UP = replace(
    RESNET_CIFAR,
    source="ResNet's paper, section 4.2, and the pre-activation paper's appendix: a low rate for the first 400 steps, "
    "here a linear warm-up",
    warmup_epochs=1,
)
FACEBOOK = Recipe(
    source="fb.resnet.torch: 90 epochs, falls at 30 and 60",
    optimizer="nesterov",
    lr=0.1,
    schedule="steps",
    drops=(1 / 3, 2 / 3),
    weight_decay=1e-4,
    batch=256,
    epochs=90,
    area=(0.08, 1),
    jitter=0.4,
    lighting=0.1,
    flip=True,
)
SENET = Recipe(
    source="SENet's paper, section 6.1. Left out: classes sampled evenly, and what the released weights had besides "
    "(batch 256, rate 0.1, rotation)",
    lr=0.6,
    schedule="steps",
    drops=(0.3, 0.6, 0.9),
    weight_decay=1e-4,
    batch=1024,
    epochs=100,
    area=(0.08, 1),
    flip=True,
)
STOCHASTIC_DEPTH = replace(
    RESNET_CIFAR,
    source="the stochastic depth paper, section 4. Its best epoch on validation images is the last one here",
    optimizer="nesterov",
    epochs=500,
    survival=0.5,
)
WIDE_RESNET = Recipe(
    source="the Wide ResNet paper, section 3, and its code",
    optimizer="nesterov",
    lr=0.1,
    schedule="steps",
    drops=(0.3, 0.6, 0.8),
    factor=0.2,
    weight_decay=5e-4,
    batch=128,
    epochs=200,
    shift=4,
    reflect=True,
    flip=True,
)
DENSENET_CIFAR = Recipe(
    source="DenseNet's paper, section 4.2, with augmentation, so without dropout",
    optimizer="nesterov",
    lr=0.1,
    schedule="steps",
    drops=(0.5, 0.75),
    weight_decay=1e-4,
    batch=64,
    epochs=300,
    shift=4,
    flip=True,
)
RESNEXT_CIFAR = replace(
    DENSENET_CIFAR,
    source="ResNeXt's paper, section 5.3, and its code's README",
    weight_decay=5e-4,
    batch=128,
)

PAPERS: dict[str, Recipe] = {
    "lenet5": LENET5,
    "lenet5_modern": replace(
        LENET5, source="none: LeNet-5's, with cross-entropy and batches of 32", lr=0.01, batch=32, loss="cross_entropy"
    ),
    "alexnet": ALEXNET,
    "alexnet_owt": replace(TORCHVISION, lr=0.01),
    "zfnet": ZFNET,
    "vgg": VGG,
    "torchvision": TORCHVISION,
    "nin_cifar": NIN_CIFAR,
    "nin_imagenet": NIN_IMAGENET,
    "googlenet": GOOGLENET,
    "googlenet_bn_tv": replace(INCEPTION_V2, source="none: its weights came from TF-Slim; BN-Inception's"),
    "inception_v2": INCEPTION_V2,
    "inception_v3": replace(INCEPTION_V3, dropout=0.2),  # TF-Slim's
    "inception_v4": INCEPTION_V4,
    "resnet": RESNET,
    "resnet_cifar": RESNET_CIFAR,
    "warmed_up": WARMED_UP,
    "preact_resnet200": replace(FACEBOOK, source="the pre-activation paper, section 5: fb.resnet.torch's"),
    "senet": SENET,
    "senet154": replace(SENET, label_smoothing=0.1, dropout=0.2),
    "stochastic_depth": STOCHASTIC_DEPTH,
    "wrn_16_8": replace(WIDE_RESNET, dropout=0.0),
    "wrn_28_10": replace(WIDE_RESNET, dropout=0.3),  # Table 6
    "facebook": FACEBOOK,
    "densenet_cifar": DENSENET_CIFAR,
    "resnext": replace(
        FACEBOOK, source="ResNeXt's paper, section 4, and its code: 100 epochs", drops=(0.3, 0.6, 0.9), epochs=100
    ),
    "resnext_cifar": RESNEXT_CIFAR,
}
