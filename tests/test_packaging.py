from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import ecgfeat

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "numpy", "h5py", "sklearn", "matplotlib", "PIL")

TRY_EVERY_HELP = f"""
import contextlib, io, json, sys
import ecgfeat
loaded = {{"import ecgfeat": [name for name in {HEAVY} if name in sys.modules]}}
import ecgfeat.cli
import typer.main
loaded["import ecgfeat.cli"] = [name for name in {HEAVY} if name in sys.modules]

def commands(command, words=()):
    yield words
    for name, below in getattr(command, "commands", {{}}).items():
        yield from commands(below, (*words, name))

for words in commands(typer.main.get_command(ecgfeat.cli.app)):
    help = io.StringIO()
    with contextlib.redirect_stdout(help):
        ecgfeat.cli.app([*words, "--help"], standalone_mode=False)
    assert "--help" in help.getvalue()
    loaded[" ".join([*words, "--help"])] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(loaded))
"""


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings_of(tool: str) -> dict[str, Any]:
    """A tool's part of pyproject.toml."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = content["tool"][tool]
    return settings


def shipped_files() -> set[str]:
    """What a wheel must hold: the library, and `cli/` inside it."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ecgfeat").rglob("*.py")}
    files |= {
        f"ecgfeat/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "cli").rglob("*.py")
    }
    return files | {"ecgfeat/py.typed", "ecgfeat/report.html.jinja"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a freshly built wheel was installed."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for name in ("ecgfeat", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # --no-index: no registry may be asked for anything, least of all for a package to build.
    offline = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run_python(
        *("-m", "pip", "wheel", *offline, "--no-build-isolation"),
        *("--wheel-dir", "wheels", str(source)),
        cwd=folder,
    )
    (wheel,) = (folder / "wheels").iterdir()
    run_python("-m", "pip", "install", *offline, "--target", "site", str(wheel), cwd=folder)
    return folder / "site"


def test_the_packages_listed_are_the_folders() -> None:
    folders = {Path(path).parent for path in shipped_files() if path.endswith("__init__.py")}
    assert settings_of("setuptools")["packages"] == sorted(
        ".".join(folder.parts) for folder in folders
    )


def test_every_module_lies_in_a_package() -> None:
    for path in shipped_files():
        folder = Path(path).parent
        assert str(folder / "__init__.py") in shipped_files()


def test_a_wheel_holds_the_library_and_nothing_else(site: Path) -> None:
    dist_info = f"ecgfeat-{ecgfeat.__version__}.dist-info"
    assert {path.name for path in site.iterdir()} == {"bin", "ecgfeat", dist_info}
    installed = {
        path.relative_to(site).as_posix()
        for path in (site / "ecgfeat").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert installed == shipped_files()


def test_a_wheel_runs_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    homes = run_python(
        "-c",
        "import ecgfeat.cli; print(ecgfeat.__file__, ecgfeat.cli.__file__, sep='\\n')",
        cwd=tmp_path,
        path=site,
    )
    assert homes.split() == [
        str(site / "ecgfeat" / "__init__.py"),
        str(site / "ecgfeat" / "cli" / "__init__.py"),
    ]
    version = run_python("-m", "ecgfeat.cli", "--version", cwd=tmp_path, path=site)
    assert version == f"ecgfeat {ecgfeat.__version__}\n"
    assert "fit-head" in run_python("-m", "ecgfeat.cli", "--help", cwd=tmp_path, path=site)
    assert (
        run_python(str(site / "bin" / "ecgfeat"), "--version", cwd=tmp_path, path=site) == version
    )


def test_importing_and_asking_for_help_load_nothing_heavy(tmp_path: Path) -> None:
    loaded = json.loads(run_python("-c", TRY_EVERY_HELP, cwd=tmp_path))
    assert {"--help", "extract --help", "cache info --help"} < loaded.keys()
    assert {words: names for words, names in loaded.items() if names} == {}


def test_every_public_name_is_there_on_first_use() -> None:
    assert set(ecgfeat.__all__) <= set(dir(ecgfeat))
    for name in ecgfeat.__all__:
        assert getattr(ecgfeat, name) is not None
    with pytest.raises(AttributeError, match=r"^module 'ecgfeat' has no attribute 'nothing'$"):
        _ = ecgfeat.nothing


def test_the_layers_of_imports_name_every_module() -> None:
    (contract,) = settings_of("importlinter")["contracts"]
    named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    there = {
        f"ecgfeat.{path.stem}"
        for path in (ROOT / "ecgfeat").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert named == {*there, "cli"}
