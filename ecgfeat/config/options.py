"""Every setting of the program and the library: its default, its range, the reason for both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ecgfeat.architectures import ARCHITECTURES, LAYERS
from ecgfeat.config.base import Settings, comma_separated, setting
from ecgfeat.errors import ConfigError

__all__ = [
    "ARCHITECTURES",
    "LAYERS",
    "RUN_KINDS",
    "TAPS",
    "AuditSettings",
    "BatchNorm",
    "ChoiceScore",
    "ClassWeights",
    "Clean",
    "ComputeSettings",
    "CropMode",
    "DataSettings",
    "Device",
    "Difficulty",
    "EpochChoice",
    "EvaluationSettings",
    "ExtractionSettings",
    "FigureFormat",
    "FigureSettings",
    "FinetuneSettings",
    "FreezeTo",
    "HeadChoice",
    "HeadKind",
    "HeadSettings",
    "ImageFormat",
    "NetworkSettings",
    "Optimizer",
    "PageSettings",
    "Photo",
    "Precision",
    "PreviewSettings",
    "ReportSettings",
    "RunKind",
    "Schedule",
    "SplitSettings",
    "Strength",
    "SweepSettings",
    "SynthSettings",
    "Tap",
    "parse_tap",
]

CropMode = Literal["center", "border", "squash"]
Clean = Literal["none", "photo"]


class Sized:
    """What has a `size` in pixels, ``W`` or ``WxH``."""

    size: str

    @property
    def width_px(self) -> int:
        """Its width in pixels."""
        return int(self.size.split("x")[0])

    @property
    def height_px(self) -> int:
        """Its height in pixels."""
        return int(self.size.split("x")[-1])


@dataclass(frozen=True, kw_only=True)
class PageSettings(Sized, Settings):
    """From page to network input."""

    crop_mode: CropMode = setting(
        "squash",
        "center: the ImageNet preset (short side to size*256/224, then the middle); "
        "border: the whole page, aspect kept, padded with its paper's colour; "
        "squash: the whole page, stretched.",
        choices=get_args(CropMode),
    )
    size: str = setting("448x320", "Network input in pixels, W or WxH.", metavar="W|WxH")
    # Of a printed ECG at 25 mm/s, 150 dpi keep 6.8 ms a pixel; A3 at 600 is about what is decoded.
    dpi: int = setting(
        150,
        "Dots per inch that a PDF's pages are drawn at, before they are resized.",
        minimum=36,
        maximum=600,
        rare=True,
    )
    clean: Clean = setting(
        "none",
        "photo: find and straighten the page in a photograph, and keep of every page, scans too, "
        "only the ink, black on white. For heads that are to read phone pictures.",
        choices=get_args(Clean),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", self.size):
            raise ConfigError(
                f"--size must be W or WxH in pixels, such as 224 or 448x320; found {self.size!r}"
            )
        if min(self.width_px, self.height_px) < 32 or max(self.width_px, self.height_px) > 4096:
            raise ConfigError(
                f"--size must be from 32 to 4096 pixels a side (a ResNet shrinks its input "
                f"32-fold); found {self.size!r}"
            )

    def in_words(self) -> str:
        """As options; the dots per inch and the cleaning where they are not the usual ones."""
        dpi = "" if self.dpi == PageSettings.dpi else f" --dpi {self.dpi}"
        clean = "" if self.clean == PageSettings.clean else f" --clean {self.clean}"
        return f"--crop-mode {self.crop_mode} --size {self.size}{dpi}{clean}"


@dataclass(frozen=True, kw_only=True)
class PreviewSettings(Settings):
    """The sheet."""

    n: int = setting(
        3,
        "Images per class, chosen by a hash of their paths: always the same.",
        minimum=1,
        maximum=1000,
    )


FigureFormat = Literal["png", "pdf", "svg"]


@dataclass(frozen=True, kw_only=True)
class FigureSettings(Settings):
    """The figures."""

    figure_format: FigureFormat = setting(
        "png",
        "png at 300 dpi, or pdf or svg, whose text stays text and whose lines are sharp at any "
        "size.",
        choices=get_args(FigureFormat),
    )
    title: bool = setting(
        True, "Write above each figure what it is of; a paper says that in its caption."
    )
    names: str = setting(
        "",
        "What classes are called in the figures, such as no-lvh=no LVH,lvh=LVH; the others keep "
        "their names.",
        metavar="CLASS=NAME[,…]",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = [word.partition("=") for word in comma_separated(self.names)]
        classes = [name.strip() for name, _, called in pairs if name.strip() and called.strip()]
        if len(set(classes)) < len(pairs):
            raise ConfigError(
                "--names must give each class a name once, such as no-lvh=no LVH,lvh=LVH; found "
                f"{self.names!r}"
            )

    def rename(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What the classes are called in the figures, in the same order.

        Raises
        ------
        ConfigError
            When `names` has a name for what is no class, or one name for two of them.
        """
        pairs = (word.partition("=") for word in comma_separated(self.names))
        called = {name.strip(): new.strip() for name, _, new in pairs}
        unknown = [name for name in called if name not in classes]
        if unknown:
            raise ConfigError(
                f"--names has a name for {unknown[0]!r}, which is no class: there are "
                f"{', '.join(classes)}"
            )
        renamed = tuple(called.get(name, name) for name in classes)
        twice = [name for name in renamed if renamed.count(name) > 1]
        if twice:
            raise ConfigError(f"--names would call two classes {twice[0]!r}: give each its own")
        return renamed


Difficulty = Literal["easy", "medium", "hard"]
ImageFormat = Literal["jpeg", "png"]
Photo = Literal["none", "1", "2", "3"]


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The data.

    Which images there are, and which of them are for testing.
    """

    root: Path | None = setting(
        None, "Folder that the CSV's paths are relative to (default: the CSV's own folder)."
    )
    test_fraction: float = setting(
        0.2,
        "Share of each class that goes to test where the data name no split.",
        above=0,
        below=1,
    )
    split_seed: int = setting(
        0, "Seed of that split; every command given the same one agrees.", minimum=0, rare=True
    )
    path_column: str = setting(
        "", "A CSV's column of paths (default: path, filename, image …).", metavar="NAME", rare=True
    )
    label_column: str = setting(
        "",
        "A CSV's column of labels (default: label, class, diagnosis …), or several columns of 0 "
        "and 1, one per class: A,B,C.",
        metavar="NAME[,…]",
    )
    split_column: str = setting(
        "", "A CSV's column of splits (default: split, set, subset …).", metavar="NAME", rare=True
    )
    group_column: str = setting(
        "",
        "A CSV's column that tells whose image it is (default: group, patient_id, subject …).",
        metavar="NAME",
    )
    test_folds: str = setting(
        "",
        "Where the data name numbered folds (a column such as strat_fold, or folders fold_1 …): "
        "those for testing, such as 9,10.",
        metavar="N[,…]",
        rare=True,
    )
    group_by: str = setting(
        "",
        "Whose image it is by its path: folder is the one below its class that it lies in, 1 the "
        "first below the class, 2 the next; name is the beginning of the file's name, such as p12 "
        "of p12_3.png.",
        metavar="folder|name|N",
    )
    pages: Literal["first", "all"] = setting(
        "first",
        "Of a file of several pages (TIFF, PDF, DICOM): the first, or all, each page an image of "
        "its own, and those of one file in one group.",
        choices=("first", "all"),
    )
    limit: int = setting(
        0,
        "Only this many images, spread over classes and splits; 0 takes all.",
        minimum=0,
        rare=True,
    )
    follow_links: bool = setting(
        False, "Take images and folders that are symbolic links to outside DATA.", rare=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_by not in ("", "folder", "name") and not re.fullmatch("[1-9]", self.group_by):
            raise ConfigError(
                "--group-by must be folder, name, or the number of a folder below the class, "
                f"from 1 to 9; found {self.group_by!r}"
            )
        for word in comma_separated(self.test_folds):
            if not re.fullmatch(r"\d{1,6}", word):
                raise ConfigError(
                    f"--test-folds must be numbers such as 9,10; found {self.test_folds!r}"
                )


@dataclass(frozen=True, kw_only=True)
class AuditSettings(Settings):
    """What is looked at."""

    root: Path | None = setting(
        None, "Folder where the images are, if they were moved (default: where extract read them)."
    )
    by: str = setting(
        "",
        "Columns of the data by whose values images are counted and, with --run, results are "
        "given (default: every column of up to 12 values, and ages and the like in quarters).",
        metavar="NAME[,…]",
    )
    pages: int = setting(
        2000,
        "Pages to measure for shortcuts, one a group, spread over the classes; 0 opens no image, "
        "and finds no near copies either.",
        minimum=0,
    )
    seed: int = setting(0, "Seed of folds and of shuffled classes.", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """The page."""

    samples: int = setting(3, "Images of each class to show.", minimum=0, maximum=50)
    mistakes: int = setting(
        6,
        "The most confident mistakes to show of each of the four best runs, with where the "
        "network looked; 0 loads no network.",
        minimum=0,
        maximum=200,
    )
    root: Path | None = setting(
        None, "Folder where the images are, if they were moved (default: where they were read)."
    )
    weights: str = setting(
        "",
        "Where the backbone's weights are now, if not where the runs found them.",
        metavar="PATH",
    )


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """The new split.

    Shares and seed are the data's: --test-fraction and --split-seed.
    """

    copies: Literal["drop", "group"] = setting(
        "drop",
        "Of a picture that is there several times: keep the first, or keep all on one side.",
        choices=("drop", "group"),
    )
    val_fraction: float = setting(
        0.0,
        "Share of the training groups of each class to make a validation part.",
        minimum=0,
        below=1,
    )
    folds: int = setting(
        0,
        "Deal out numbered folds instead (a column fold, for --test-folds); 0 makes a split.",
        minimum=0,
        maximum=100,
    )
    keep_split: bool = setting(
        False,
        "Keep the split that the data name; of a picture or a group on both sides what is tested "
        "stays.",
    )
    audit: Path | None = setting(
        None, "Folder of an audit, whose near copies are then kept together or dropped too."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("--folds must be 0 or at least 2; found 1")
        if self.keep_split and (self.folds or self.val_fraction):
            raise ConfigError(
                "--keep-split keeps the split, and --folds and --val-fraction make another: "
                "give one of them"
            )
        if self.keep_split and self.copies == "group":
            raise ConfigError(
                "--keep-split can't move a copy to the other side: leave out --copies group"
            )


@dataclass(frozen=True, kw_only=True)
class SynthSettings(Sized, Settings):
    """The pages."""

    train: int = setting(800, "Training pages, half of them per class.", minimum=2)
    test: int = setting(200, "Test pages, half of them per class.", minimum=0)
    seed: int = setting(0, "Same seed, same pages, byte for byte.", minimum=0)
    difficulty: Difficulty = setting(
        "medium",
        "How slight the pathology is, and how much pages differ otherwise.",
        choices=get_args(Difficulty),
    )
    size: str = setting("400x300", "Page in pixels, WxH.", metavar="WxH")
    format: ImageFormat = setting(
        "jpeg", "jpeg (quality 90) or png.", choices=get_args(ImageFormat)
    )
    photo: Photo = setting(
        "none",
        "Photograph each page with a phone: 1 a careful picture, 2 a careless one (tilted, "
        "creased, in bad light), 3 a bad one that can still be read.",
        choices=get_args(Photo),
    )
    copies: int = setting(
        0,
        "Test pages more that are training pages again: every other one byte for byte, the rest "
        "saved anew at a lower quality. For trying audit and split.",
        minimum=0,
    )
    undecodable: int = setting(
        0, "Files more that are no readable images: cut off, empty, or something else.", minimum=0
    )
    missing: int = setting(0, "Rows more in the manifest, of files that aren't there.", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies > self.train:
            raise ConfigError(
                f"--copies {self.copies} needs as many training pages; there are {self.train}"
            )
        if not re.fullmatch(r"[1-9][0-9]{2,3}x[1-9][0-9]{2,3}", self.size):
            raise ConfigError(
                f"--size must be WxH in pixels, each from 100 to 9999, such as 400x300; "
                f"found {self.size!r}"
            )


TAPS = LAYERS
"""The taps of a cache where no others are asked for."""

_NAME = re.compile(r"(layer[1-4])(?:-(max|std))?(?:-([1-8])x([1-8]))?")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tap.

    Attributes
    ----------
    name : str
        As in the cache.
    layer : str
        ``layer1`` to ``layer4``.
    pool : str
        ``avg``, ``max`` or ``std``.
    rows, columns : int
        Cells of the grid; 1 and 1 for the whole page.
    """

    name: str
    layer: str
    pool: str
    rows: int
    columns: int

    @property
    def n_cells(self) -> int:
        """Pools per channel."""
        return self.rows * self.columns


def parse_tap(name: str) -> Tap:
    """Read a tap's name.

    Raises
    ------
    ConfigError
        When it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name!r} is no layer: give layer1 to layer4, with -max or -std for another pool than "
            "the average, and -ROWSxCOLUMNS (each 1 to 8) for a grid, such as layer4-max or "
            "layer2-4x4"
        )
    layer, pool, rows, columns = match.groups(default="")
    return Tap(
        name=name, layer=layer, pool=pool or "avg", rows=int(rows or 1), columns=int(columns or 1)
    )


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
        "or the path of a state dict (.pth, .ckpt, .safetensors …; PATH#PREFIX where it holds "
        "several networks) or of a fine-tuning's folder.",
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
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(Settings):
    """Extraction.

    How the images are run through the frozen network.
    """

    batch_size: int = setting(
        0,
        "Images per forward pass; 0 takes 8 on the CPU, fewer of more than 224x224 pixels (3 of "
        "448x320: more are slower there), 128 elsewhere.",
        minimum=0,
        maximum=4096,
    )
    layers: str = setting(
        "layer1-4x4,layer2-4x4,layer3,layer4",
        "What to take of the network, comma-separated: layer1 to layer4 average each of a layer's "
        "channels over the page; -max or -std take another pool; -ROWSxCOLUMNS, as in layer2-4x4, "
        "pools in each cell of a grid. Layers after the last one named are not computed.",
        metavar="A[,B]",
    )

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers' names, in the order given."""
        return comma_separated(self.layers)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.taps:
            parse_tap(name)
        if not self.taps or len(set(self.taps)) != len(self.taps):
            raise ConfigError(
                "--layers must name each layer once, such as layer1-4x4,layer4; "
                f"found {self.layers!r}"
            )


HeadKind = Literal["linear", "logreg"]


class RunKind(NamedTuple):
    """What a kind of run is called, and the options that are worth another try."""

    title: str
    retry: str


RUN_KINDS: Mapping[str, RunKind] = {
    "linear": RunKind("Linear head", "more --epochs, another --lr or --head logreg"),
    "logreg": RunKind("Logistic regression", "another --C, other --layers or --sweep default"),
    "both": RunKind("Linear head or logistic regression", "other --layers or --sweep default"),
    "finetune": RunKind("Fine-tuning", "more --epochs, another --lr or --lr auto"),
}
"""Every `HeadKind`, what a choice among them ends in, and fine-tuning."""
HeadChoice = Literal[HeadKind, "both"]
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
    epochs: int = setting(
        0,
        "Linear head: passes over the training rows; 0 takes the study's 5, or as many as make 200 "
        "steps.",
        minimum=0,
    )
    lr: float = setting(0.001, "Linear head: Adam's learning rate.", above=0, maximum=10)
    batch_size: int = setting(64, "Linear head: rows per step.", minimum=1)
    weight_decay: float = setting(0.0, "Linear head: Adam's L2 penalty.", minimum=0, maximum=100)
    label_smoothing: float = setting(
        0.0,
        "Linear head: share of each target that is spread evenly over all classes.",
        minimum=0,
        below=1,
        rare=True,
    )
    # Features of several layers differ so much in size that Adam's equal steps would serve one.
    standardize: bool = setting(
        True,
        "Linear head: train on standardised features, as logistic regression always does; the "
        "study took them as they are.",
        rare=True,
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

    @property
    def is_balanced(self) -> bool:
        """Whether classes count alike, however many rows they have."""
        return self.class_weights == "balanced"

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
        rare=True,
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
        rare=True,
    )

    @property
    def is_choosing(self) -> bool:
        """Whether anything is to be chosen: heads, or the epoch alone by `folds`."""
        return bool(self.sweep or self.grid or self.folds)

    @property
    def is_refitting(self) -> bool:
        """Whether heads are tested that were trained on the validation rows too."""
        return bool(self.refit or self.folds)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("--folds must be 0 or at least 2; found 1")
        if self.refit and not self.is_choosing:
            raise ConfigError(
                "--refit trains a chosen head once more, and nothing is chosen: also give "
                "--sweep default, --grid or --folds"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation.

    Who trains, who is tested, and what counts as positive.
    """

    positive: str = setting(
        "",
        "Class (or classes: A,B) against the rest, as a binary task. With two classes and "
        "no option: the one not plainly normal (normal, control, no-x, 0 and the like), else the "
        "last in order.",
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
        rare=True,
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
        rare=True,
    )
    prevalence: float = setting(
        0.0,
        "Binary tasks: also give PPV and NPV where this share of people is positive; 0 leaves "
        "them at the test rows' own share.",
        minimum=0,
        below=1,
        rare=True,
    )
    allow_leak: bool = setting(
        False,
        "Go on where test images are also trained on, byte for byte or by their group; every "
        "result then says so.",
        rare=True,
    )
    seed: int = setting(
        0,
        "Seed of new weights, order of the rows, folds and validation rows.",
        minimum=0,
        maximum=2**31 - 1,  # what numpy, torch and scikit-learn all take
    )

    @property
    def is_deciding(self) -> bool:
        """Whether validation rows decide how probabilities become answers."""
        return self.calibrate or bool(self.at_sensitivity)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cv == 1:
            raise ConfigError("--cv must be 0 or at least 2 folds; found 1")
        if self.cv and self.test_subset:
            raise ConfigError(
                "--test-subset needs the test split, and --cv ignores it: give one of the two"
            )


Strength = Literal["none", "light", "strong", "photo"]
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
        rare=True,
    )
    weight_decay: float = setting(
        0.0, "Pull of the weights to 0; with adam and sgd as an L2 penalty.", minimum=0, maximum=100
    )
    label_smoothing: float = setting(
        0.0,
        "Share of each target that is spread evenly over all classes, against overconfidence.",
        minimum=0,
        below=1,
        rare=True,
    )
    class_weights: ClassWeights = setting(
        "none",
        "balanced: every class counts as much in the loss as any other, however few its images.",
        choices=get_args(ClassWeights),
    )
    clip: float = setting(
        0.0,
        "Longest gradient (its norm over all weights) let through; 0 lets all.",
        minimum=0,
        rare=True,
    )
    accumulate: int = setting(
        1,
        "Parts in which a step's images go through the network one after another: less memory, "
        "and the same gradient but for batch norm, which sees one part at a time. Doubled where "
        "memory runs out.",
        minimum=1,
        rare=True,
    )
    batch_norm: BatchNorm = setting(
        "update",
        "freeze: keep the pretrained means and variances, which small batches estimate badly; "
        "nothing then holds the maps' size, and the rate must be lower, such as 1e-5.",
        choices=get_args(BatchNorm),
        rare=True,
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
        rare=True,
    )
    tensorboard: bool = setting(
        False,
        "Also write the curves for TensorBoard, as they come, into tensorboard/ in the run's "
        "folder. Needs the extra tensorboard.",
    )
    compile: bool = setting(
        False,
        "Let torch.compile fuse the network: minutes at the start, faster steps on a GPU.",
        rare=True,
    )
    augment: Strength = setting(
        "none",
        "Change each training page a little, anew in every epoch: light as a scanner or printer "
        "does, strong as a camera or copier does, photo as a phone's picture of it on a table. "
        "Never mirrored: that would reverse time.",
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
