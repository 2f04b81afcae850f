"""Small networks for images, and images for them."""

import torch
from torch import Tensor

from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.convolutional.vgg import VGG11

CLASSES = 5
CHANNELS, HIDDEN = [5, 4, 6, 4, 7, 5, 4, 6], [9, 7]
BODIES = {"shared": {}, "dealt out": {"deal_channels": True}}
SECTIONS = (1, 2, 6, 1)


def vgg11(**options) -> VGG11:
    return VGG11(HIDDEN, CLASSES, **{"channels": CHANNELS, **options})


def resnet(least: int, subnets: int = 1) -> ResNet:
    return ResNet(SECTIONS, (4, 5, 6, 7), CLASSES, least, subnets)


def images(rank: int, step: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    """A batch that is a function of rank and step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    features = torch.rand(rows, 3 * 32 * 32, generator=generator)
    return features, torch.randint(CLASSES, (rows,), generator=generator)
