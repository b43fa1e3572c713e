"""A network whose last layer begins as a fitted head: linear probing, then fine-tuning.

Under a new last layer the first steps pull good features about to suit random weights; under a
fitted one they have little to mend (Kumar et al. 2022, "Fine-tuning can distort pretrained
features and underperform out-of-distribution").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.architectures import family_of
from ecgfeat.backbones import Weights
from ecgfeat.config import (
    EvaluationSettings,
    NetworkSettings,
    PageSettings,
    as_json,
    option_name,
)
from ecgfeat.errors import ConfigError, RunError, WeightsError
from ecgfeat.files import typed
from ecgfeat.manifest import Manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition
from ecgfeat.runs import Run, damaged, open_run

__all__ = ["FittedHead", "HeadOrigin", "as_last_layer", "read_head"]

TAP = "layer4"
"""What a ResNet's last layer reads: the average pool of this layer."""

LastLayer = dict[str, NDArray[np.float32]]
"""``weight`` of shape (n_classes, width) and ``bias`` of shape (n_classes,), as in nn.Linear."""


def as_last_layer(tensors: Mapping[str, NDArray[Any]]) -> LastLayer:
    """Write a fitted head as a linear layer on raw features.

    The linear head is one. Of logistic regression, ``z = coef @ (x - mean) / scale + intercept``
    is ``W @ x + b`` with ``W = coef / scale`` and ``b = intercept - W @ mean``. With two classes
    there is one z, the positive's, and probabilities ``softmax(0, z)``. Of all pairs of logits
    that are z apart, and so say the same, ``(-z/2, z/2)`` has the smallest weights, and weight
    decay favours neither class; it is what a softmax regression with two outputs ends in.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As a head's run keeps them: ``weight`` and ``bias``, or ``mean``, ``scale``, ``coef`` and
        ``intercept``.
    """
    if "weight" in tensors:
        weight, bias = tensors["weight"], tensors["bias"]
    else:
        weight = tensors["coef"] / tensors["scale"]
        bias = tensors["intercept"] - weight @ tensors["mean"]
        if len(weight) == 1:
            weight = np.concatenate([-weight / 2, weight / 2])
            bias = np.concatenate([-bias / 2, bias / 2])
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def read_head(run: Run | str | Path) -> FittedHead:
    """Open a run of fit-head to begin a fine-tuning with.

    Raises
    ------
    RunError
        When it is no head's run, is damaged, or its head reads other layers than the last.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if run.kind == "finetune":
        raise RunError(
            f"{run.path} is a fine-tuning, and --from-head takes the run of a head. Give one that "
            "fit-head made; a fine-tuned network goes on by --weights."
        )
    card = run.checked_card
    arrays = run.fold_models() if run.is_cross_validated else [run.model()]
    try:
        layers = [as_last_layer(tensors) for tensors in arrays]
    except (KeyError, ValueError) as error:
        raise damaged(run.path, f"its arrays are no head ({error})") from error
    head = FittedHead(
        run=run,
        classes=card.classes,
        arch=card.backbone.arch,
        weights=card.backbone.weights,
        weights_digest=card.backbone.weights_digest,
        preprocessing=card.preprocessing,
        evaluation=typed(run.config.get("evaluation", {}), EvaluationSettings),
        layers=layers,
    )
    # A head that is chosen anew in each fold may read other layers in each.
    others = [taps for taps in card.fold_taps or (card.taps,) if taps != (TAP,)]
    if others:
        raise RunError(
            f"{run.path}: its head reads {' and '.join(others[0])}, and a network's last layer "
            f"reads {TAP} alone. Fit a head with --layers {TAP}."
        )
    return head


class HeadOrigin(TypedDict):
    """Which head it is, as ``config.json`` has it."""

    run: str
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedHead:
    """A run of fit-head, as the beginning of a fine-tuning.

    Attributes
    ----------
    run : Run
    classes : tuple of str
    arch, weights, weights_digest : str
        The backbone that its features came from.
    preprocessing : Preprocessing
        What that backbone was given.
    evaluation : EvaluationSettings
        Who trained it and who tested it.
    layers : sequence of LastLayer
        By fold; a single one where the run is no cross-validation.
    """

    run: Run
    classes: tuple[str, ...]
    arch: str
    weights: str
    weights_digest: str
    preprocessing: Preprocessing
    evaluation: EvaluationSettings
    layers: Sequence[LastLayer]

    def describe(self) -> HeadOrigin:
        """Which head it is, for ``config.json``."""
        total = hashlib.sha256()
        for layer in self.layers:
            for name in ("weight", "bias"):
                total.update(np.ascontiguousarray(layer[name], dtype="<f4").data)
        return {"run": str(self.run.path), "digest": total.hexdigest()}

    def put_into(self, network: torch.nn.Module, fold: int) -> None:
        """Make it the last layer of a fold's network.

        Raises
        ------
        RunError
            When it isn't of the layer's size, which a head of this backbone and classes is.
        """
        layer = network.get_submodule(family_of(self.arch).classifier)
        try:
            layer.load_state_dict(
                {name: torch.from_numpy(array) for name, array in self.layers[fold].items()}
            )
        except RuntimeError as error:
            raise damaged(self.run.path, "its head doesn't fit its own backbone") from error

    @property
    def network(self) -> NetworkSettings:
        """The backbone that its features came from."""
        return NetworkSettings(arch=self.arch, weights=self.weights)

    @property
    def page(self) -> PageSettings:
        """How its pages were prepared."""
        return self.preprocessing.page

    def refuse_other(self, network: NetworkSettings, page: PageSettings) -> None:
        """Refuse another backbone or other pages than its own.

        Weights may be given by another path: `refuse_misfit` compares what they hold.

        Raises
        ------
        ConfigError
            The message names the option.
        """
        is_same_size = (page.width_px, page.height_px) == (self.page.width_px, self.page.height_px)
        asked = {**as_json(page), "arch": network.arch}
        if is_same_size:
            asked["size"] = self.page.size  # 224 and 224x224 are the same
        for name, own in {**as_json(self.page), "arch": self.arch}.items():
            if asked[name] != own:
                option = option_name(name)
                raise ConfigError(
                    f"{self.run.path}: its head was fitted with {option} {own}, and {option} "
                    f"{asked[name]} is asked for. Leave {option} out, or fit a head with "
                    f"{asked[name]}."
                )

    def refuse_misfit(
        self,
        *,
        weights: Weights,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        evaluation: EvaluationSettings,
        manifest: Manifest,
        plan: Sequence[Partition],
    ) -> None:
        """Refuse to begin a fine-tuning that the head doesn't fit, or whose test rows it knows.

        Raises
        ------
        WeightsError, RunError
            The message names what differs and the mend.
        """
        if weights.digest != self.weights_digest:
            raise WeightsError(
                f"{self.run.path}: its head was fitted on features of {self.weights} (digest "
                f"{self.weights_digest[:12]}), but {weights.name} has the digest "
                f"{weights.digest[:12]}. Give the head's own weights with --weights PATH."
            )
        # Two ways of resizing differ by little; the layer is trained on in any case.
        own = self.preprocessing
        alike = replace(preprocessing, resampling=own.resampling) == own
        if not alike or preprocessing.clean != own.clean:
            raise RunError(
                f"{self.run.path}: its head was fitted on pages prepared otherwise "
                f"({self.preprocessing} instead of {preprocessing}). Fit it again."
            )
        if tuple(classes) != self.classes:
            raise RunError(
                f"{self.run.path}: its head tells apart {', '.join(self.classes)}, in this order, "
                f"and here it is {', '.join(classes)}. Give finetune the --positive that fit-head "
                f"had ({self.evaluation.positive or 'none'}), or fit the head anew."
            )
        self._refuse_other_rows(evaluation, manifest, plan)

    def _refuse_other_rows(
        self, evaluation: EvaluationSettings, manifest: Manifest, plan: Sequence[Partition]
    ) -> None:
        if self.run.config.get("manifest_digest") != manifest.digest:
            raise RunError(
                f"{self.run.path}: its head was fitted on other data than {manifest.source}, or "
                "paths, labels, splits or groups have changed since, so it may know test rows. "
                "Extract and fit-head anew with the same DATA."
            )
        own, options = self.evaluation, ["cv"]
        if evaluation.val_fraction:
            options.append("val_fraction")
        if evaluation.cv or evaluation.val_fraction:
            options.append("seed")
        differs = any(getattr(own, name) != getattr(evaluation, name) for name in options)
        if not differs and evaluation.val_fraction and self._was_trained_on_all:
            raise RunError(
                f"{self.run.path}: its head was trained once more on all training rows, and so "
                "on those that would now validate it. Fit one without --refit and --folds."
            )
        if differs or self._knows_test_rows(manifest, plan):
            theirs = " ".join(f"{option_name(name)} {getattr(own, name)}" for name in options)
            raise RunError(
                f"{self.run.path}: its head was trained on rows that would now test or validate "
                f"it. Give finetune what fit-head had ({theirs}), or fit a head with finetune's."
            )

    @property
    def _was_trained_on_all(self) -> bool:
        """Whether it kept no rows out in the end, though some may have chosen it."""
        return not all(part["validation"] for part in self.run.config.get("partitions", ()))

    def _knows_test_rows(self, manifest: Manifest, plan: Sequence[Partition]) -> bool:
        """Whether a fold would test rows that the head of another fold was tested on.

        The same options deal the same rows out otherwise where they come in another order.
        """
        if not self.evaluation.cv:
            return False
        predictions = self.run.predictions
        fold_of = dict(zip(predictions.ids, predictions.folds.tolist()))
        return any(
            fold_of.get(manifest.paths[row], part.fold) != part.fold
            for part in plan
            for row in part.test
        )
