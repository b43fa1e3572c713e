"""The whole network's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ecgfeat.config.heads import ClassWeights
from ecgfeat.config.setting import Settings, setting
from ecgfeat.errors import ConfigError

__all__ = [
    "BatchNorm",
    "EpochChoice",
    "FinetuneSettings",
    "FreezeTo",
    "Optimizer",
    "Schedule",
    "Strength",
]

Strength = Literal["none", "light", "strong"]
EpochChoice = Literal["last", "log_loss", "accuracy", "balanced_accuracy", "auroc"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
BatchNorm = Literal["update", "freeze"]
FreezeTo = Literal["none", "stem", "layer1", "layer2", "layer3", "layer4"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """Training.

    The whole network's; the defaults are the study's.
    """

    epochs: int = setting(5, "Passes over the training images.", minimum=1)
    lr: float | Literal["auto"] = setting(
        0.001,
        "Learning rate. The study's 0.001 is high for a pretrained network; try 0.0001, or auto, "
        "which finds one by a short test on the training images.",
        above=0,
        maximum=10,
        words=("auto",),
        metavar="RATE|auto",
    )
    # One image has no batch statistics.
    batch_size: int = setting(
        64, "Images per step, all processes together.", minimum=2, maximum=4096
    )
    optimizer: Optimizer = setting(
        "adam",
        "adam: the study's; adamw: weight decay apart from the gradient's scaling; sgd: momentum "
        "0.9, needs a --lr 10 to 100 times as high.",
        choices=get_args(Optimizer),
    )
    schedule: Schedule = setting(
        "constant",
        "constant: the study's; cosine: the rate falls to 0, so that the last epochs settle.",
        choices=get_args(Schedule),
    )
    warmup: float = setting(
        0.0,
        "Share of all steps in which the rate rises to --lr: the first gradients of a new last "
        "layer would throw pretrained weights about.",
        minimum=0,
        below=1,
    )
    weight_decay: float = setting(
        0.0, "Pull of the weights to 0; with adam and sgd as an L2 penalty.", minimum=0, maximum=100
    )
    label_smoothing: float = setting(
        0.0,
        "Share of each target that is spread evenly over all classes, against overconfidence.",
        minimum=0,
        below=1,
    )
    class_weights: ClassWeights = setting(
        "none",
        "balanced: every class counts as much in the loss as any other, however few its images.",
        choices=get_args(ClassWeights),
    )
    clip: float = setting(
        0.0, "Longest gradient (its norm over all weights) let through; 0 lets all.", minimum=0
    )
    accumulate: int = setting(
        1,
        "Parts in which a step's images go through the network one after another: less memory, "
        "and the same gradient but for batch norm, which sees one part at a time. Doubled where "
        "memory runs out.",
        minimum=1,
    )
    batch_norm: BatchNorm = setting(
        "update",
        "freeze: keep the pretrained means and variances, which small batches estimate badly; "
        "nothing then holds the maps' size, and the rate must be lower, such as 1e-5.",
        choices=get_args(BatchNorm),
    )
    freeze_to: FreezeTo = setting(
        "none",
        "Leave the network's beginning up to this layer as it is: faster, and less to overfit.",
        choices=get_args(FreezeTo),
    )
    choose_by: EpochChoice = setting(
        "last",
        "The epoch whose weights are tested and kept: the last, as in the study, or the best by "
        "this score on the --val-fraction rows.",
        choices=get_args(EpochChoice),
    )
    patience: int = setting(
        0, "Stop after this many epochs without a better --choose-by; 0 never does.", minimum=0
    )
    checkpoint_minutes: float = setting(
        5.0,
        "Minutes between checkpoints within an epoch, all that a kill in it can cost; 0 keeps one "
        "after epochs only.",
        minimum=0,
    )
    compile: bool = setting(
        False, "Let torch.compile fuse the network: minutes at the start, faster steps on a GPU."
    )
    augment: Strength = setting(
        "none",
        "Change each training page a little, anew in every epoch: light as a scanner or printer "
        "does, strong as a camera or copier does. Never mirrored: that would reverse time.",
        choices=get_args(Strength),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.accumulate > self.batch_size:
            raise ConfigError(
                f"--accumulate {self.accumulate} leaves parts of fewer than 2 images of a "
                f"--batch-size of {self.batch_size}: give at most {self.batch_size // 2}"
            )
        if self.patience and self.choose_by == "last":
            raise ConfigError(
                "--patience waits for a better score: also give --choose-by and --val-fraction"
            )
