"""Who trains, who is tested, and what counts as positive."""

from __future__ import annotations

from dataclasses import dataclass

from ecgfeat.config.setting import Settings, setting
from ecgfeat.errors import ConfigError

__all__ = ["EvaluationSettings"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation.

    Who trains, who is tested, and what counts as positive.
    """

    positive: str = setting(
        "",
        "Class (or classes: A,B) against the rest, as a binary task. With two classes and no "
        "option: 1 of 0/1, else the last in order.",
        metavar="A[,B]",
    )
    cv: int = setting(
        0,
        "Cross-validation folds: the split is ignored, every row is predicted once by a model "
        "that saw neither it nor its group; 0 uses the split.",
        minimum=0,
        maximum=100,
    )
    test_subset: int = setting(
        0,
        "Test on this many rows only, stratified, the same for every run on the same data (the "
        "study used 1000); 0 takes all.",
        minimum=0,
    )
    val_fraction: float = setting(
        0.0,
        "Share of the training rows (whole groups) kept out as validation rows: for curves, "
        "calibration, operating point, and the choice in a sweep, where 0 takes 0.2.",
        minimum=0,
        below=1,
    )
    calibrate: bool = setting(
        False,
        "Correct the probabilities on the validation rows: by one temperature (linear heads, "
        "fine-tuning) or by Platt's line (logistic regression).",
    )
    at_sensitivity: float = setting(
        0.0,
        "Binary tasks: answer positive from the probability on at which this share of the "
        "validation rows' positives is found; 0 takes the more probable class.",
        minimum=0,
        below=1,
    )
    prevalence: float = setting(
        0.0,
        "Binary tasks: also give PPV and NPV where this share of people is positive; 0 leaves "
        "them at the test rows' own share.",
        minimum=0,
        below=1,
    )
    seed: int = setting(
        0,
        "Seed of new weights, order of the rows, folds and validation rows.",
        minimum=0,
        maximum=2**31 - 1,  # what numpy, torch and scikit-learn all take
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cv == 1:
            raise ConfigError("--cv must be 0 or at least 2 folds; found 1")
        if self.cv and self.test_subset:
            raise ConfigError(
                "--test-subset needs the test split, and --cv ignores it: give one of the two"
            )
