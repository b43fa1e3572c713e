"""Fixtures that several test files share."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest
from PIL import Image, ImageDraw

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PAGE_PX = (96, 72)

# As the program sets it: threads that wait for a core give theirs away (see cli/__init__.py).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# As many threads in all as cores, or those of one process would keep the others waiting.
N_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if N_PROCESSES > 1 else ():
    os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // N_PROCESSES)))

# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("ecgfeat", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ecgfeat")

TinyPages = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def figures_switch() -> Iterator[dict[str, bool]]:
    """Runs have no figures but in tests marked ``figures``: drawing took a fifth of the time."""
    from ecgfeat.runs import writing

    switch = {"on": False}
    draw = writing.draw_figures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "draw_figures", lambda *args: draw(*args) if switch["on"] else [])
        yield switch


@pytest.fixture(autouse=True)
def figures_where_marked(
    request: pytest.FixtureRequest, figures_switch: dict[str, bool]
) -> Iterator[None]:
    """Let the tests marked ``figures`` have a run's figures."""
    figures_switch["on"] = request.node.get_closest_marker("figures") is not None
    yield
    figures_switch["on"] = False


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is no part of the repository."""
    folder = Path(os.environ.get("ECGFEAT_SHARED_DATA", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder} (or where ECGFEAT_SHARED_DATA says)")
    return folder


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """An ImageNet ResNet-18's state dict."""
    path = shared_data / "weights" / "resnet18-imagenet-vq.pth"
    if not path.is_file():
        pytest.skip(f"needs the weights {path}")
    return path


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, a run of each kind on two classes, and one of each head on three."""
    from .studies import make_study  # late: it loads torch

    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def pages(study: Path) -> list[Path]:
    """The test pages of the study's two classes."""
    return sorted((study / "pages2" / "test").rglob("*.png"))


def draw_page(seed: int, label: int = 0, size_px: tuple[int, int] = PAGE_PX) -> Image.Image:
    """A trace on paper, (width, height) pixels; `label` sets how tall its spikes are."""
    width, height = size_px
    page = Image.new("RGB", size_px, (255, 240 - seed % 7, 236))
    draw = ImageDraw.Draw(page)
    for x in range(seed % 8, width, 8):
        draw.line([(x, 0), (x, height)], fill=(244, 190, 190))
    middle = height // 2 + seed % 5 - 2
    spike = (6 + 14 * label) * height // 72
    points = [(x, middle - (spike if (x + seed) % 24 < 4 else 0)) for x in range(0, width, 2)]
    draw.line(points, fill=(10, 10, 30), width=2)
    return page


def write_csv(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    """Write `rows`, whose keys are the columns."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def tiny_pages(tmp_path: Path) -> TinyPages:
    """A factory of small data sets that a network can learn.

    ``tiny_pages()`` makes ``<tmp_path>/pages/{train,test}/{a,b}/*.png`` and returns the folder;
    ``tiny_pages(as_csv=True)`` also writes ``manifest.csv`` beside them with the columns
    ``path,label,split,group`` and returns the CSV. Two pages make a group where ``grouped``.
    """

    def make(
        name: str = "pages",
        *,
        classes: tuple[str, ...] = ("a", "b"),
        n_train: int = 8,
        n_test: int = 4,
        size_px: tuple[int, int] = PAGE_PX,
        suffix: str = ".png",
        as_csv: bool = False,
        grouped: bool = False,
    ) -> Path:
        root = tmp_path / name
        rows = []
        for split, n_pages in (("train", n_train), ("test", n_test)):
            for index in range(n_pages):
                label = index % len(classes)
                path = f"{split}/{classes[label]}/{index:03d}{suffix}"
                group = f"{split}-{index // (2 * len(classes))}-{label}" if grouped else ""
                rows.append({"path": path, "label": classes[label], "split": split, "group": group})
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                seed = index + (1000 if split == "test" else 0)
                draw_page(seed, label, size_px).save(target)
        return write_csv(root / "manifest.csv", rows) if as_csv else root

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A factory of file systems with a given number of KiB."""
    mounted: list[Path] = []

    def mount(n_kib: int) -> Path:
        folder = tmp_path / f"disk-{n_kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_kib}k", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
