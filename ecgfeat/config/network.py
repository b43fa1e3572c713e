"""The pretrained network, where it is computed, and how images are run through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ecgfeat.config.setting import Settings, comma_separated, setting
from ecgfeat.config.taps import TAPS, parse_tap
from ecgfeat.errors import ConfigError

__all__ = [
    "ARCHITECTURES",
    "ComputeSettings",
    "Device",
    "ExtractionSettings",
    "NetworkSettings",
    "Precision",
]

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""torchvision's ResNet family, by its names: those that it has ImageNet weights for."""

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """The pretrained network."""

    arch: str = setting(
        "resnet18",
        f"One of {', '.join(ARCHITECTURES)}.",
        choices=ARCHITECTURES,
        metavar="NAME",
    )
    weights: str = setting(
        "imagenet",
        "imagenet: torchvision's default, downloaded once, hash checked; random or random:SEED; "
        "or the path of a state dict (.pth or .safetensors) or of a fine-tuning's folder.",
        metavar="imagenet|random|PATH",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """Computing.

    Where and how exactly the network is computed.
    """

    device: Device = setting(
        "auto", "auto takes CUDA, then MPS, then the CPU.", choices=get_args(Device)
    )
    precision: Precision = setting(
        "auto",
        "auto takes bfloat16 (CUDA without it: float16) where it is clearly faster, else fp32; in "
        "predict, the run's. Features below fp32 must first agree with it in a self-check.",
        choices=get_args(Precision),
    )
    threads: int = setting(
        0,
        "Threads that decode images; 0 takes one per core, 32 at most.",
        minimum=0,
        maximum=256,
    )


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(Settings):
    """Extraction.

    How the images are run through the frozen network.
    """

    batch_size: int = setting(
        0,
        "Images per forward pass; 0 takes 4 on the CPU (no more are faster there), 128 elsewhere.",
        minimum=0,
        maximum=4096,
    )
    limit: int = setting(
        0, "Only this many images, spread over classes and splits; 0 takes all.", minimum=0
    )
    taps: str = setting(
        ",".join(TAPS),
        "What to take of the network, comma-separated: layer1 to layer4 average each of a layer's "
        "channels over the page; -max or -std take another pool; -ROWSxCOLUMNS, as in layer2-4x4, "
        "pools in each cell of a grid. Layers after the last one named are not computed.",
        metavar="A[,B]",
    )

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The taps' names, in the order given."""
        return comma_separated(self.taps)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tap_names:
            parse_tap(name)
        if not self.tap_names or len(set(self.tap_names)) != len(self.tap_names):
            raise ConfigError(
                f"--taps must name each tap once, such as layer1-4x4,layer4; found {self.taps!r}"
            )
