"""Every parser of a file from outside, given nonsense: it takes it, or says what is wrong.

What it says names the file. Nothing else may come out of it: no other exception, and no hanging.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ecgfeat import open_run, read_manifest
from ecgfeat.backbones import load_weights
from ecgfeat.cli._console import Output
from ecgfeat.cli._results import runs_as_json, show_runs
from ecgfeat.config import NetworkSettings, SweepSettings
from ecgfeat.errors import EcgfeatError
from ecgfeat.finetuning import checkpoint
from ecgfeat.finetuning.from_head import read_head
from ecgfeat.finetuning.job import Begun
from ecgfeat.heads.sweep import read_grid
from ecgfeat.inference import read_model
from tests.finetuning.test_checkpoints import a_state

OLD = Path(__file__).parent / "data" / "runs-v1"
NONSENSE = (None, True, -1, 2**70, 0.5, float("nan"), float("inf"), "[/x]", "\x1b[2J", [], {})


def places(found: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """The place of every value in a JSON value, of lists only the first one's."""
    if isinstance(found, dict):
        parts = list(found.items())
    else:
        parts = list(enumerate(found[:1])) if isinstance(found, list) else []
    for key, part in parts:
        yield (*above, key)
        yield from places(part, *above, key)


def with_nonsense(whole: Any) -> Iterator[tuple[str, Any]]:
    """The value with one part lost or replaced, for each part and nonsense, and where it was."""
    text = json.dumps(whole)
    for *above, last in places(whole):
        for nonsense in (*NONSENSE, ...):
            changed = json.loads(text)
            part = changed
            for key in above:
                part = part[key]
            if nonsense is ...:
                del part[last]
            else:
                part[last] = nonsense
            yield f"{[*above, last]} = {nonsense!r}", changed


def refusal(use: Callable[[], object], where: str) -> str:
    """The words of the error that `use` ends in; empty where it goes through."""
    try:
        use()
    except EcgfeatError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(where) from error
    return ""


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        folder = Path(shutil.copytree(OLD / kind, tmp_path / kind))
        for packed in folder.glob("*.xz"):
            packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        return folder

    return copy


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("linear", name) for name in ("config.json", "metrics.json", "model.json")),
        *((kind, "metrics.json") for kind in ("logreg", "sweep", "cross-validated")),
        *((kind, "model.json") for kind in ("cross-validated", "finetune")),
    ],
)
def test_no_field_of_a_run_breaks_what_reads_it(
    run_of: Callable[[str], Path], kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(kind)
    whole = json.loads((folder / name).read_text())
    output = Output(as_json=False)

    def use() -> None:
        run = open_run(folder)
        if name != "model.json":
            show_runs(output, [run])
            json.dumps(runs_as_json([run]), allow_nan=False)
            _ = run.cost
        elif kind != "cross-validated":
            read_model(run)
        if kind != "finetune":
            read_head(folder)

    last = refusal(use, "as it was")
    assert not last or "reads layer" in last or "can begin" in last, last
    n_refused = 0
    for where, changed in with_nonsense(whole):
        (folder / name).write_text(json.dumps(changed))
        said = refusal(use, where)
        assert not said or str(folder) in said, (where, said)
        n_refused += bool(said) and said != last
    assert n_refused > len(NONSENSE) * 2
    assert "\x1b" not in capsys.readouterr().out


def test_no_field_of_a_begun_config_breaks_what_goes_on_by_it() -> None:
    begun = json.loads((OLD / "finetune" / "config.json").read_text())
    Begun.of(begun)
    n_refused = 0
    for where, changed in with_nonsense(begun):
        try:
            Begun.of(changed)
        except ValueError:
            n_refused += 1
        except Exception as error:
            raise AssertionError(where) from error
    assert n_refused > 300


def test_no_field_of_a_checkpoint_breaks_what_goes_on_by_it(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, a_state(), checkpoint.Snapshot())
    path = tmp_path / checkpoint.CHECKPOINT
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    n_refused = 0
    for where, changed in with_nonsense(state):
        text = json.dumps(changed)
        # As one would who wants to be believed.
        metadata = {"state": text, "digest": checkpoint._digest(text, tensors)}
        save_file(tensors, path, metadata=metadata)
        said = refusal(lambda: checkpoint.load_checkpoint(tmp_path), where)
        assert not said or f"{path} is damaged (" in said, said
        n_refused += bool(said)
    assert n_refused > 100


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, a_state(), checkpoint.Snapshot())
    path = tmp_path / checkpoint.CHECKPOINT
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        said = refusal(lambda: checkpoint.load_checkpoint(tmp_path), str(place))
        assert f"{path} is damaged (" in said, place


# Any bytes at all

bits_of_csv = st.lists(
    st.sampled_from([*"0129,;.\t\"'\n\r\\/ \x00\ufeff\u202eé"])
    | st.sampled_from(["path", "label", "split", "group", "train", "a", "p_a", "p_b", "x.png"])
    | st.sampled_from(["nan", "1e999", "-1", "99999999999999999999"]),
    max_size=60,
).map("".join)
any_text = st.one_of(bits_of_csv.map(str.encode), st.binary(max_size=200))


@settings(max_examples=100)
@given(content=any_text)
def test_any_file_is_a_manifest_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    path.write_bytes(content)
    said = refusal(lambda: read_manifest(path), repr(content))
    assert not said or str(path) in said, said


@settings(max_examples=100)
@given(content=any_text, name=st.sampled_from(["predictions.csv", "history.csv"]), keep=st.data())
def test_any_csv_of_a_run_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, keep: st.DataObject
) -> None:
    folder = Path(shutil.copytree(OLD / "linear", tmp_path_factory.mktemp("run") / "run"))
    path = folder / name
    whole = path.read_bytes()
    # Nonsense in the midst of sense goes further than nonsense alone.
    place, end = sorted(keep.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    path.write_bytes(whole[:place] + content + whole[min(end, place + 5) :])
    run = open_run(folder)
    said = refusal(lambda: (run.predictions, run.history), repr(path.read_bytes()))
    assert not said or f"{path} is damaged: " in said, said


@settings(max_examples=100)
@given(
    content=st.one_of(
        st.binary(max_size=100),
        st.lists(
            st.sampled_from([*"[]{}=,.\n\"' 019-", "lr", "C", "layers", "inf", "nan", "true"])
        ).map(lambda parts: "".join(parts).encode()),
    )
)
def test_any_file_is_a_grid_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("toml") / "grid.toml"
    path.write_bytes(content)
    said = refusal(
        lambda: read_grid(SweepSettings(sweep=str(path)), ("linear", "logreg")), repr(content)
    )
    assert not said or str(path) in said, said


state_dicts = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=5),
        st.lists(st.integers(0, 2), max_size=3).map(lambda shape: torch.zeros(shape)),
    ),
    lambda parts: st.dictionaries(
        st.sampled_from(["state_dict", "model", "module.", "fc.weight", "conv1.weight", "bn1.bias"])
        | st.integers(0, 3),
        parts,
        max_size=4,
    ),
    max_leaves=12,
)


@settings(max_examples=40)
@given(content=state_dicts)
def test_any_content_is_weights_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(content, path)
    said = refusal(lambda: load_weights(NetworkSettings(weights=str(path))), repr(content))
    assert str(path) in said, said


@settings(max_examples=30)
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".pth", ".safetensors", ".ckpt"]))
def test_any_file_is_weights_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("weights") / f"weights{suffix}"
    path.write_bytes(content)
    said = refusal(lambda: load_weights(NetworkSettings(weights=str(path))), repr(content))
    assert str(path) in said, said
