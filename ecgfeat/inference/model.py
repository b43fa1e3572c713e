"""What a run kept of its model, read back and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.architectures import family_of
from ecgfeat.calibration import Decision
from ecgfeat.config import NetworkSettings, parse_tap
from ecgfeat.errors import ConfigError, WeightsError
from ecgfeat.heads import Likeness, Tensors, head_fits, head_probabilities
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs import Run, damaged
from ecgfeat.runtime import Compute

if TYPE_CHECKING:
    from ecgfeat.backbones import Backbone

__all__ = ["Model", "read_model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedHead:
    """A head, and what becomes of its probabilities.

    Attributes
    ----------
    taps : tuple of str
        Names of the taps that, joined, are its features.
    tensors : mapping of str to ndarray
        As `ecgfeat.heads.head_probabilities` takes them.
    decision : Decision
    """

    taps: tuple[str, ...]
    tensors: Tensors
    decision: Decision

    def probabilities(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Calibrated probabilities by class, shape (b, n_classes)."""
        X = np.concatenate([features[tap] for tap in self.taps], axis=1)
        return self.decision.probabilities(head_probabilities(self.tensors, X))


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A backbone to be loaded, and the head on it; of a cross-validation the heads of all folds.

    Attributes
    ----------
    run : Run
    classes : tuple of str
    network : NetworkSettings
        The backbone; a fine-tuning's weights are in its own folder.
    weights_digest : str
        Of the backbone's weights; empty where they are the run's own.
    heads : tuple of CalibratedHead
    likeness : Likeness or None
        Of a run's head by this version or later, whose folds read the same layers.
    preprocessing : Preprocessing
    precision, decoder : str
        What the run's own features were computed in and decoded by.
    """

    run: Run
    classes: tuple[str, ...]
    network: NetworkSettings
    weights_digest: str
    heads: tuple[CalibratedHead, ...]
    likeness: Likeness | None
    preprocessing: Preprocessing
    precision: str
    decoder: str

    @property
    def decision(self) -> Decision:
        """How the probabilities become answers; of several heads by the mean of their thresholds.

        Of several heads the probabilities are already calibrated, each head's in its own way.
        """
        if len(self.heads) == 1:
            return self.heads[0].decision
        thresholds = [head.decision.threshold for head in self.heads]
        found = [threshold for threshold in thresholds if threshold is not None]
        return Decision(threshold=float(np.mean(found)) if found else None)

    def load_backbone(self, weights: str | None, compute: Compute) -> Backbone:
        """Load the backbone, from `weights` if they have moved.

        Raises
        ------
        ConfigError
            When a fine-tuning is given other weights than its own.
        WeightsError
            When the weights can't be had, or aren't those that the head was trained on.
        RunError
            When the head doesn't fit the backbone.
        DeviceError
        """
        from ecgfeat.backbones import Backbone, load_weights

        if weights and not self.weights_digest:
            raise ConfigError(
                f"{self.run.path} is a fine-tuning and keeps its own weights: leave out --weights"
            )
        found = load_weights(replace(self.network, weights=weights or self.network.weights))
        if self.weights_digest and found.digest != self.weights_digest:
            raise WeightsError(
                f"{self.run.path} was trained on features of {self.network.weights} (digest "
                f"{self.weights_digest[:12]}), but {found.name} has the digest "
                f"{found.digest[:12]}. Give the run's own weights with --weights PATH."
            )
        taps = tuple(dict.fromkeys(tap for head in self.heads for tap in head.taps))
        backbone = Backbone(found, self.preprocessing, compute, taps=taps)
        n_classes = len(self.classes)
        for head in self.heads:
            width = sum(backbone.taps[tap] for tap in head.taps)
            if not head_fits(head.tensors, n_classes=n_classes, width=width):
                raise damaged(
                    self.run.path / self.run.model_file,
                    f"it holds no head for {n_classes} classes and {width} features",
                )
        if self.likeness is not None and self.likeness.mean.shape != (width,):
            raise damaged(self.run.path / "likeness.safetensors", f"it isn't of {width} features")
        return backbone

    def distances(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """How far each image lies from the training images, over how far those do, shape (b,).

        NaN where the run doesn't say how far they do.
        """
        if self.likeness is None:
            return np.full(len(next(iter(features.values()))), np.nan, np.float32)
        X = np.concatenate([features[tap] for tap in self.heads[0].taps], axis=1)
        found: NDArray[np.float32] = self.likeness.distances(X) / self.likeness.limit
        return found

    def probabilities(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Calibrated probabilities by class, shape (b, n_classes), of a backbone's features.

        Of several heads their mean.
        """
        found: NDArray[np.float64] = np.mean(
            [head.probabilities(features) for head in self.heads], axis=0
        )
        return found


def read_model(run: Run) -> Model:
    """Read a run's model card and tensors.

    Raises
    ------
    RunError
        When the run keeps no model, or it is damaged.
    StorageError
        When it can't be read.
    """
    card = run.checked_card
    is_finetuned = run.kind == "finetune"
    arrays = run.fold_models() if run.is_cross_validated else [run.model()]
    decisions = run.decisions
    try:
        if is_finetuned:
            taps: Sequence[tuple[str, ...]] = [("layer4",)]
            arrays = [_last_layer(card.backbone.arch, arrays[0])]
        else:
            taps = card.fold_taps or [card.taps] * len(arrays)
        for decision in decisions:
            decision.refuse_other(len(card.classes))
        return Model(
            run=run,
            classes=card.classes,
            network=NetworkSettings(
                arch=card.backbone.arch,
                weights=str(run.path) if is_finetuned else card.backbone.weights,
            ),
            weights_digest="" if is_finetuned else card.backbone.weights_digest,
            heads=tuple(
                CalibratedHead(taps=_tap_names(of_fold), tensors=tensors, decision=decision)
                for of_fold, tensors, decision in zip(taps, arrays, decisions, strict=True)
            ),
            likeness=None if card.fold_taps else _likeness(run),
            preprocessing=card.preprocessing,
            precision=card.precision,
            decoder=card.decoder,
        )
    except (ValueError, ConfigError) as error:
        raise damaged(run.path / "model.json", f"a field is missing or wrong ({error})") from error


def _tap_names(taps: Sequence[str]) -> tuple[str, ...]:
    if not taps:
        raise ValueError("taps is empty")
    return tuple(parse_tap(name).name for name in taps)


def _likeness(run: Run) -> Likeness | None:
    tensors = run.likeness()
    if not tensors:
        return None
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    width = tensors.get("mean", np.empty(0)).shape
    is_sound = shapes == {"mean": width, "scale": width, "limit": (1,)}
    if not is_sound or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise damaged(run.path / "likeness.safetensors", "it holds other arrays")
    return Likeness(**tensors)


def _last_layer(arch: str, tensors: Tensors) -> dict[str, NDArray[Any]]:
    last = family_of(arch).classifier
    try:
        return {name: tensors[f"{last}.{name}"] for name in ("weight", "bias")}
    except KeyError as error:
        raise ValueError(f"its network has no {error}") from error
