"""Random changes of training pictures: of each picture before its conversion to pixels, then of whole batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from engines.published.preprocess import to_mode
from training.input import Input
from training.recipes import Recipe

# Eigenvalues and eigenvectors of the colours of ImageNet's pixels, 0 to 1 (fb.resnet.torch).
PCA_VALUES = torch.tensor((0.2175, 0.0188, 0.0045))
PCA = torch.tensor(((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)))


class Lighting(nn.Module):
    """Colour noise of AlexNet (section 4.1): adds each principal component, scaled by N(0, std²) of its eigenvalue."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, pixels: Tensor) -> Tensor:  # uint8 (3, height, width)
        noise = 255 * PCA @ (PCA_VALUES * torch.randn(3) * self.std)
        return (pixels + noise.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)


def picture_augmentation(recipe: Recipe, network_input: Input) -> Callable[[Image.Image], Tensor] | None:
    """Return a random conversion of a picture to uint8 pixels, (channels, height, width).

    Returns None if the recipe changes no single picture.
    """
    edge = network_input.preprocess.shape[0]
    steps: list[Callable[..., object]] = []
    if recipe.area:
        steps.append(v2.RandomResizedCrop(edge, recipe.area))
    elif recipe.shorter_edge:
        # Recipes state edges for an input of 224 pixels; other inputs are in proportion.
        low, high = (round(bound * edge / 224) for bound in recipe.shorter_edge)
        steps += [resize_between(low, high), v2.RandomCrop(edge)]
    crops = bool(steps)
    if recipe.trivial:
        steps.append(v2.TrivialAugmentWide())
    if recipe.rotation:
        steps.append(v2.RandomRotation(recipe.rotation))
    if recipe.jitter:
        steps.append(v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter))
    colour = network_input.preprocess.mode == "RGB"
    tail = [v2.PILToTensor(), *([Lighting(recipe.lighting)] if recipe.lighting and colour else [])]
    if not steps and len(tail) == 1:
        return None

    def change(picture: Image.Image) -> Tensor:
        if crops:
            picture = to_mode(picture, network_input.preprocess.mode, network_input.preprocess.fill)
        else:
            pixels = network_input.preprocess(picture)
            picture = Image.fromarray(pixels if colour else pixels[..., 0])
        changed: Tensor = v2.Compose([*steps, *tail])(picture)
        return changed

    return change


def resize_between(low: int, high: int) -> Callable[[Image.Image], Image.Image]:
    """Return a function that resizes a picture's shorter edge to a random length, `low` to `high` pixels."""

    def resize(picture: Image.Image) -> Image.Image:
        resized: Image.Image = v2.functional.resize(picture, [int(torch.randint(low, high + 1, ()))])
        return resized

    return resize


class Moves:
    """Random shift and flip of each image of one batch."""

    def __init__(self, recipe: Recipe, images: int, random: torch.Generator) -> None:
        self.shift, self.reflect = recipe.shift, recipe.reflect
        self.corners = torch.randint(2 * self.shift + 1, (images, 2), generator=random) if self.shift else None
        self.flips = torch.rand(images, generator=random) < 0.5 if recipe.flip else None

    def __call__(self, pixels: Tensor, share: slice, fill: int) -> Tensor:
        """Shift and flip `pixels`, uint8 (N, channels, height, width), which are the batch's images in `share`."""
        if self.corners is not None:
            pixels = translate(pixels, self.corners[share], self.shift, fill, reflect=self.reflect)
        if self.flips is not None:
            flips = self.flips[share].to(pixels.device, non_blocking=True)
            pixels = torch.where(flips.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        return pixels


def translate(pixels: Tensor, corners: Tensor, shift: int, fill: int, *, reflect: bool) -> Tensor:
    """Pad each image of (N, channels, height, width) by `shift` pixels and crop it at its corner (top, left)."""
    height, width = pixels.shape[2:]
    around = (shift,) * 4
    if reflect:
        padded = F.pad(pixels.float(), around, mode="reflect").to(torch.uint8)
    else:
        padded = F.pad(pixels, around, value=fill)
    if pixels.is_cuda:
        return gathered(padded, corners.to(pixels.device, non_blocking=True), height, width)
    moved = [
        image[:, top : top + height, left : left + width]
        for image, (top, left) in zip(padded, corners.tolist(), strict=True)
    ]
    return torch.stack(moved)


def gathered(padded: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Crop each image of (N, channels, height, width) at its corner in one operation, which suits a GPU."""
    rows = corners[:, 0, None] + torch.arange(height, device=padded.device)  # (N, height)
    columns = corners[:, 1, None] + torch.arange(width, device=padded.device)  # (N, width)
    numbers = torch.arange(len(padded), device=padded.device)
    channels = torch.arange(padded.shape[1], device=padded.device)
    return padded[
        numbers[:, None, None, None],
        channels[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
