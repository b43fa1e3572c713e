"""What people call the parts of their data: splits, columns, labels that are none, junk."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "COLUMNS",
    "FOLD_COLUMNS",
    "group_in",
    "is_junk",
    "is_no_label",
    "looks_like",
    "looks_like_patient",
    "number_in",
    "plain",
    "some_of",
    "split_called",
]

_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
# As in train_set, Test-Data, "validation images".
_TAIL = re.compile(r"_?(set|split|data|dataset|images?|imgs?|folder)$")

_IMAGE_COLUMNS = (
    "image images image_path image_name image_file image_filename img img_path img_name"
)
_PATIENT_COLUMNS = (
    "patient patient_id patientid patient_no patient_number subject subject_id subjectid person "
    "person_id participant participant_id"
)
COLUMNS = {
    role: tuple(names.split())
    for role, names in {
        "path": f"path file filename filepath file_name file_path {_IMAGE_COLUMNS}",
        "label": "label labels class classes class_name class_label label_name diagnosis target "
        "category",
        "split": "split set subset partition dataset_split data_split",
        "group": f"group group_id {_PATIENT_COLUMNS}",
    }.items()
}
"""What each column is called, plainly; the first name is taken before the others."""
FOLD_COLUMNS = ("fold", "folds", "strat_fold", "kfold", "cv_fold", "fold_id")

_JUNK = {
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
    "__pycache__",
}
_NO_LABEL = {"", "nan", "null", "<na>"}


def plain(name: str) -> str:
    """A name in small letters, its words joined by ``_``: ``"Patient ID"`` is ``patient_id``."""
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold()).strip("_")


def looks_like_patient(name: str) -> bool:
    """Whether a column of that name may tell whose image it is."""
    return plain(name) in COLUMNS["group"]


def split_called(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` for what people call them, None for another name.

    Examples
    --------
    >>> split_called("Training"), split_called("test_set"), split_called("normal")
    ('train', 'test', None)
    """
    word = plain(name)
    return _SPLIT_OF.get(word) or _SPLIT_OF.get(_TAIL.sub("", word))


def number_in(name: str) -> int | None:
    """The number of a fold: of ``"3"``, ``"3.0"``, ``"fold_3"`` or ``"Fold 3"``; else None."""
    match = re.fullmatch(r"(?:fold_?)?(\d{1,6})(?:_0)?", plain(name))
    return int(match[1]) if match else None


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own: thumbnails, waste, versions."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_no_label(label: str) -> bool:
    """Whether a cell says that there is no label."""
    return label.casefold() in _NO_LABEL


def looks_like(label: str) -> str:
    """The same for labels that a reader takes for one: ``MI`` and ``mi``, ``0`` and ``0.0``."""
    try:
        return f"{float(label):g}"
    except ValueError:
        return plain(label)


def group_in(folders: Sequence[str], name: str, group_by: str) -> str:
    """What of a path tells whose image it is, by ``--group-by``; "" where nothing does.

    Parameters
    ----------
    folders : sequence of str
        Those that the image lies in, from the top; in a tree those below its class.
    name : str
        The file's.
    group_by : str
        ``"folder"`` takes the last folder, a number that one, from 1; ``"name"`` the beginning
        of the file's name; empty takes none.

    Examples
    --------
    >>> group_in(["p12"], "rec3.png", "folder"), group_in([], "p12_3.png", "name")
    ('p12', 'p12')
    """
    if not group_by:
        return ""
    if group_by == "name":
        match = re.fullmatch(r"(.*\d.*?)[_\- .][^_\- .]{1,8}", name.rpartition(".")[0] or name)
        return match[1] if match else ""
    level = len(folders) if group_by == "folder" else int(group_by)
    return folders[level - 1] if 1 <= level <= len(folders) else ""


def some_of(names: Sequence[str], n_shown: int = 4) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:n_shown]) + (" …" if len(names) > n_shown else "")
