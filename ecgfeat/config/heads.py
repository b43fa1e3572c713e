"""The head, and the choice among many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ecgfeat.config.setting import Settings, comma_separated, setting
from ecgfeat.errors import ConfigError

__all__ = ["ChoiceScore", "ClassWeights", "HeadKind", "HeadSettings", "SweepSettings"]

HeadKind = Literal["linear", "logreg"]
ClassWeights = Literal["none", "balanced"]
ChoiceScore = Literal["log_loss", "accuracy", "balanced_accuracy", "auroc"]


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """The head.

    The linear head's epochs and learning rate are the study's.
    """

    layers: str = setting(
        "layer4",
        "Taps of the cache to join as features, such as layer3,layer4 or layer2-4x4; cache info "
        "lists them.",
        metavar="A[,B]",
    )
    epochs: int = setting(5, "Linear head: passes over the training rows.", minimum=1)
    lr: float = setting(0.001, "Linear head: Adam's learning rate.", above=0, maximum=10)
    batch_size: int = setting(64, "Linear head: rows per step.", minimum=1)
    weight_decay: float = setting(0.0, "Linear head: Adam's L2 penalty.", minimum=0, maximum=100)
    label_smoothing: float = setting(
        0.0,
        "Linear head: share of each target that is spread evenly over all classes.",
        minimum=0,
        below=1,
    )
    class_weights: ClassWeights = setting(
        "none",
        "balanced: every class counts as much in the loss as any other, however few its rows.",
        choices=get_args(ClassWeights),
    )
    C: float = setting(
        1.0, "Logistic regression: inverse strength of its L2 penalty.", above=0, maximum=1e9
    )

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers' names, in the order given."""
        return comma_separated(self.layers)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.taps or len(set(self.taps)) != len(self.taps):
            raise ConfigError(
                f"--layers must name each layer once, such as layer3,layer4; found {self.layers!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """The choice.

    Which heads are tried, and which rows choose among them: never the test rows.
    """

    sweep: str = setting(
        "",
        "Try many heads and choose one: default, or a TOML file with a list for each of layers, "
        "lr, weight_decay, label_smoothing, class_weights, C, seed.",
        metavar="default|FILE.toml",
    )
    grid: tuple[str, ...] = setting(
        (),
        "Try these values, such as lr=1e-4,1e-3; layers are joined by +. Give it once for each "
        "name, or all of them in quotes; it takes the place of the sweep's own values.",
        metavar="NAME=A,B",
    )
    folds: int = setting(
        0,
        "Choose head, C and epoch by this many folds inside the training rows, and train the "
        "chosen one on all of them; 0 chooses on the --val-fraction rows.",
        minimum=0,
        maximum=100,
    )
    # On 200 real pages it chose best (docs/guide.md): log loss blames a head for certainty that
    # calibration mends, and accuracy on few rows is mostly ties.
    choose_by: ChoiceScore = setting(
        "auroc",
        "Score on the validation rows that chooses; equal ones by log loss.",
        choices=get_args(ChoiceScore),
    )
    refit: bool = setting(
        False,
        "Train the chosen head once more on all training rows, the validation rows among them.",
    )
    seeds: int = setting(
        1,
        "Train with this many seeds, from --seed on: choices go by the mean over them, and the "
        "spread of the test scores is told.",
        minimum=1,
        maximum=1000,
    )
    learning_curve: bool = setting(
        False,
        "Also train the head on 5 to 100 % of its training rows, each with 3 seeds or --seeds, "
        "scored on the validation rows.",
    )

    @property
    def is_choosing(self) -> bool:
        """Whether anything is to be chosen: heads, or the epoch alone by `folds`."""
        return bool(self.sweep or self.grid or self.folds)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("--folds must be 0 or at least 2; found 1")
        if self.refit and not self.is_choosing:
            raise ConfigError(
                "--refit trains a chosen head once more, and nothing is chosen: also give "
                "--sweep default, --grid or --folds"
            )
