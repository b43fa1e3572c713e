"""A CSV of images: which of its columns is what, and what its cells say."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ecgfeat.config import DataSettings, comma_separated, option_name
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.manifest.manifest import ListedRows
from ecgfeat.manifest.vocabulary import (
    COLUMNS,
    FOLD_COLUMNS,
    group_in,
    is_no_label,
    number_in,
    plain,
    some_of,
    split_called,
)

__all__ = ["list_csv", "list_images"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def list_csv(source: Path, root: Path, settings: DataSettings = DataSettings()) -> ListedRows:
    """List the rows of a CSV: a path and a label each, and perhaps a split and a group.

    Paths are relative to `root`, an absolute folder. Raises DataError where the file, its columns
    or a row are not what they should be, ConfigError where a column that is asked for isn't there,
    and StorageError where the file can't be read.
    """
    table = _read(source)
    path_column = _column(table, "path", settings.path_column)
    label_columns = _label_columns(table, settings.label_column)
    split_column = _column(table, "split", settings.split_column, is_needed=False)
    group_column = _column(table, "group", settings.group_column, is_needed=False)
    labels = _labels(table, label_columns)
    table.drop([row for row, label in enumerate(labels) if is_no_label(label)])
    labels = [label for label in labels if not is_no_label(label)]
    if not labels:
        raise DataError(f"{source} has no row with a label.")
    paths = _relative_paths(table, root, path_column)
    splits, split_column = _splits(table, split_column, settings)
    groups, group_source = _groups(table, group_column, paths, settings)
    used = {"", path_column, *label_columns, split_column}  # an index column has no name
    if plain(group_column) == "group":  # a patient's number is worth keeping under its name
        used.add(group_column)
    folds = " (--test-folds)" if settings.test_folds else ""
    return ListedRows(
        source=source,
        root=root,
        paths=paths,
        labels=labels,
        splits=splits,
        groups=groups,
        metadata={name: cells for name, cells in table.columns.items() if name not in used},
        row_numbers=table.numbers,
        ignored=dict(table.ignored),
        split_source=f"the column {split_column!r}{folds}" if splits else "",
        label_source=f"the column{'s' if len(label_columns) > 1 else ''} "
        f"{some_of(list(map(repr, label_columns)))}",
        group_source=group_source,
        warnings=table.warnings,
    )


def list_images(source: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The images that a CSV lists, wherever they are, and all of its columns.

    Raises
    ------
    DataError
        When the file, or a path in it, is not what it should be.
    StorageError
    """
    table = _read(source)
    column, beside = _column(table, "path", "", has_option=False), source.resolve().parent
    # No root holds them all but that of the file system.
    cells = [cell and str(beside / cell) for cell in table.columns[column]]
    anywhere = replace(table, columns={**table.columns, column: cells})
    paths = _relative_paths(anywhere, Path("/"), column)
    return [Path("/", path) for path in paths], {k: v for k, v in table.columns.items() if k}


# The text


@dataclass
class _Table:
    """Stripped cells by column, and each row's number in the file."""

    source: Path
    columns: dict[str, list[str]]
    numbers: list[int]
    ignored: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def drop(self, rows: list[int], reason: str = "rows without a label") -> None:
        """Leave rows out, and count them."""
        if rows:
            self.ignored[reason] += len(rows)
            kept = sorted(set(range(len(self.numbers))).difference(rows))
            self.numbers = [self.numbers[row] for row in kept]
            self.columns = {
                name: [cells[row] for row in kept] for name, cells in self.columns.items()
            }

    def where(self, row: int) -> str:
        return f"{self.source}, row {self.numbers[row]}"


def _read(source: Path) -> _Table:
    text = _read_text(source)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)  # of equals the comma
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = {
            number: cells
            for number, row in enumerate(lines, 1)
            if any(cells := [cell.strip() for cell in row])
        }
    except csv.Error as error:
        raise DataError(f"{source} is not a CSV: {error}.") from error
    if not rows:
        raise DataError(f"{source} is empty: expected a header with the columns path and label.")
    header = rows.pop(next(iter(rows)))
    if len(header) == 1:
        raise DataError(
            f"{source} has one column only, {header[0][:200]!r}: expected the columns path and "
            f"label, separated by {', '.join(_SEPARATORS.values())}."
        )
    if not rows:
        raise DataError(f"{source} has a header but no rows.")
    _refuse_columns_twice(source, header)
    for number, row in rows.items():
        while len(row) > len(header) and not row[-1]:  # as spreadsheets leave them
            row.pop()
        if len(row) != len(header):
            raise DataError(
                f"{source}, row {number} has {len(row)} cells, but the header has {len(header)}."
            )
    columns = {name: list(cells) for name, cells in zip(header, zip(*rows.values()))}
    return _Table(source, columns, list(rows))


def _read_text(source: Path) -> str:
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8 text (byte {error.start}: {error.reason}). Save it as CSV "
            "in UTF-8."
        ) from error
    except OSError as error:
        raise storage_error(error, "reading", source) from error
    if "\0" in text:
        raise DataError(f"{source} is not UTF-8 text (it has null bytes). Save it as CSV in UTF-8.")
    return text


def _refuse_columns_twice(source: Path, header: list[str]) -> None:
    n = Counter(plain(name) for name in header if name)
    twice = [name for name in header if n[plain(name)] > 1]
    if twice:
        raise DataError(f"{source} has the column {twice[0]} more than once. Rename one of them.")


# Its columns


def _label_columns(table: _Table, asked: str) -> list[str]:
    """The column of labels, or the one of each class."""
    several = comma_separated(asked)
    if len(several) > 1 and plain(asked) not in map(plain, table.columns):
        return [_asked(table, name, "label_column") for name in several]
    return [_column(table, "label", asked)]


def _column(
    table: _Table, role: str, asked: str, *, is_needed: bool = True, has_option: bool = True
) -> str:
    """The column that is asked for, else the one that is called so; "" where there is none."""
    option = option_name(f"{role}_column")
    if asked:
        return _asked(table, asked, f"{role}_column")
    called = {plain(name): name for name in table.columns}
    found = [called[name] for name in COLUMNS[role] if name in called]
    if role != "group" and len(found) > 1 and plain(found[0]) != role:
        raise DataError(
            f"{table.source} has {' and '.join(map(repr, found))}, and each could be the {role}. "
            + (f"Give {option}." if has_option else f"Name the right one {role}.")
        )
    if role == "group":
        _warn_of_patients(table, found)
    if is_needed and not found:
        raise DataError(
            f"{table.source} has no column for the {role}: name it {role}"
            + (f", or give {option} one of {_header_of(table)}." if has_option else ".")
            + (_one_hot_hint(table) if role == "label" else "")
        )
    return found[0] if found else ""


def _warn_of_patients(table: _Table, found: list[str]) -> None:
    """Say which columns look like a patient's and aren't taken for one."""
    alike = [name for name in table.columns if re.search("patient|subject", plain(name))]
    for name in dict.fromkeys([*found[1:], *(name for name in alike if name not in found)]):
        why = f"{found[0]!r} tells" if found else "nothing tells"
        table.warnings.append(
            f"the column {name!r} isn't used: {why} whose image it is (else give --group-column)"
        )


def _asked(table: _Table, asked: str, option: str) -> str:
    for name in table.columns:
        if plain(name) == plain(asked):
            return name
    raise ConfigError(
        f"{option_name(option)}: {table.source} has no column {asked!r}, only {_header_of(table)}"
    )


def _header_of(table: _Table) -> str:
    return some_of(list(map(repr, table.columns)), 12)


# Its labels


_YES, _NO = {"1", "1.0", "true", "yes", "x"}, {"", "0", "0.0", "false", "no", "nan"}


def _labels(table: _Table, columns: Sequence[str]) -> list[str]:
    """Each row's label, "" where it has none; rows of several classes are left out."""
    if len(columns) == 1:
        return table.columns[columns[0]]
    several = []
    labels = []
    for row, cells in enumerate(zip(*(table.columns[name] for name in columns))):
        for name, cell in zip(columns, cells):
            if cell.casefold() not in _YES | _NO:
                raise DataError(
                    f"{table.where(row)}: the column {name!r} must hold 1 or 0, as one of several "
                    f"in --label-column; found {cell!r}."
                )
        true = [name for name, cell in zip(columns, cells) if cell.casefold() in _YES]
        if len(true) > 1:
            several.append(row)
        else:
            labels.append(true[0] if true else "")
    if several:
        table.warnings.append(
            f"{len(several)} rows are of several classes at once and are left out"
        )
        table.drop(several, "rows of several classes")
    return labels


def _one_hot_hint(table: _Table) -> str:
    found = [
        name
        for name, cells in table.columns.items()
        if name and {cell.casefold() for cell in cells} <= _YES | _NO and any(cells)
    ]
    if len(found) < 2:
        return ""
    return f" Where each class has a column of 0 and 1: --label-column {','.join(found[:6])}."


# Its paths


def _relative_paths(table: _Table, root: Path, column: str) -> list[str]:
    cells = table.columns[column]
    # Windows' separator, unless files here are called so.
    is_windows = any("\\" in cell and not (root / cell).exists() for cell in cells[:100])
    first: dict[str, int] = {}
    inside = f"{str(root).rstrip('/')}/"
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(f"{table.where(row)}: the path is empty.")
        path = os.path.normpath(cell.replace("\\", "/") if is_windows else cell)
        if path.startswith("/"):
            path = path.removeprefix(inside)
        if path.startswith(("/", "../")) or path in ("..", "."):
            raise DataError(
                f"{table.where(row)}: {cell!r} is no path inside {root}. Give --root a folder "
                "that holds all images."
            )
        if path in first:
            raise DataError(
                f"{table.source}, rows {table.numbers[first[path]]} and {table.numbers[row]} list "
                f"the same image, {path!r}. Remove one of them."
            )
        first[path] = row
    return list(first)


# Its splits and groups


def _splits(table: _Table, column: str, settings: DataSettings) -> tuple[list[str], str]:
    """Each row's split, and the column that it comes from; none and "" where none names one."""
    fold_column = next((name for name in table.columns if plain(name) in FOLD_COLUMNS), "")
    if settings.test_folds:
        name = (settings.split_column and column) or fold_column or column
        if not name:
            raise ConfigError(
                f"--test-folds: {table.source} has no column of numbered folds; name it with "
                "--split-column"
            )
        return _of_folds(table, name, set(map(int, comma_separated(settings.test_folds)))), name
    if not column:
        if fold_column:
            table.warnings.append(
                f"the column {fold_column!r} isn't used: to test on some of its folds, give "
                "--test-folds, such as --test-folds 9,10"
            )
        return [], ""
    cells = table.columns[column]
    splits = [split_called(cell) or "" for cell in cells]
    if all(splits):
        return splits, column
    if all(number_in(cell) is not None for cell in cells):
        raise DataError(
            f"{table.source}: the column {column!r} holds numbered folds. Give --test-folds those "
            "for testing, such as --test-folds 9,10."
        )
    row = splits.index("")
    if plain(column) != "split" and not settings.split_column:
        table.warnings.append(
            f"the column {column!r} isn't used: it holds {cells[row]!r}, which is no split"
        )
        return [], ""
    raise DataError(
        f"{table.where(row)}: the split must be train, val or test; found {cells[row]!r}. "
        "Correct it, or remove the column to have the rows split by class."
    )


def _of_folds(table: _Table, column: str, tested: set[int]) -> list[str]:
    cells = table.columns[column]
    numbers = [number_in(cell) for cell in cells]
    if None in numbers:
        row = numbers.index(None)
        raise DataError(
            f"{table.where(row)}: the fold must be a number; found {cells[row]!r}. Correct it, or "
            "leave out --test-folds."
        )
    there = {number for number in numbers if number is not None}
    if tested - there:
        raise ConfigError(
            f"--test-folds: {table.source} has no fold {min(tested - there)} in {column!r}, only "
            f"{', '.join(map(str, sorted(there)))}"
        )
    return ["test" if number in tested else "train" for number in numbers]


def _groups(
    table: _Table, column: str, paths: list[str], settings: DataSettings
) -> tuple[list[str], str]:
    """Each row's group, "" where it has none, and where groups come from."""
    if settings.group_by:
        parts = [path.split("/") for path in paths]
        groups = [group_in(part[:-1], part[-1], settings.group_by) for part in parts]
        return groups, f"paths (--group-by {settings.group_by})"
    if not column:
        return [""] * len(paths), ""
    groups = ["" if is_no_label(cell) else cell for cell in table.columns[column]]
    n_alone = groups.count("")
    if n_alone and plain(column) != "group":
        table.warnings.append(f"{n_alone} rows have no {column!r}: each is a group of its own")
    return groups, f"the column {column!r}" if any(groups) else ""
