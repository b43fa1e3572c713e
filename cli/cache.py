"""``ecgfeat cache``: what is in a cache, whether it is whole, and its features for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import comma_separated
from ecgfeat.errors import CacheDamagedError, CacheError, ConfigError, EcgfeatError

from ._app import app
from ._console import Output
from ._options import CACHE_FILE, FORCE, command

if TYPE_CHECKING:
    from ecgfeat.feature_cache import CacheInfo

__all__ = ["export", "info", "list_", "verify"]

caches = typer.Typer(no_args_is_help=True, help="Look into caches: list, info, verify, export.")
app.add_typer(caches, name="cache")


@command(caches, "list", examples="ecgfeat cache list\necgfeat cache list /data/caches")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of caches.")] = Path(
        "cache"
    ),
    *,
    output: Output,
) -> None:
    """List the caches of a folder."""
    from ecgfeat.feature_cache import cache_info, list_caches

    if not folder.is_dir():
        raise CacheError(f"{folder} is no folder. Name the one that extract wrote to (--cache).")
    output.say(f"caches in {folder}")
    found = []
    for path in list_caches(folder):
        try:
            cache = cache_info(path)
        except EcgfeatError as error:
            found.append({"path": str(path), "error": str(error)})
            why = "can't be used: see cache verify" if path.exists() else "begun: extract goes on"
            output.say(f"{path.name}\n    {why}")
            continue
        found.append(cache.as_json())
        output.say(
            f"{path.name}\n    {cache.n_images} images, {cache.n_bytes / 2**20:.1f} MiB, "
            f"{cache.header.arch} ({Path(cache.header.weights).name}), "
            f"{cache.header.crop_mode} {cache.header.size}, {cache.created}"
        )
    output.result({"caches": found})


@command(caches, "info", examples="ecgfeat cache info cache/pages-resnet18-1a2b3c4d.h5")
def info(cache: CACHE_FILE, *, output: Output) -> None:
    """Show what is in a cache and how it was computed."""
    from ecgfeat.feature_cache import cache_info

    described = cache_info(cache)
    for name, value in _facts(described).items():
        output.say(f"{name:<14} {value}")
    output.result(described.as_json())


def _facts(cache: CacheInfo) -> dict[str, str]:
    from ecgfeat.preprocessing import CLEANED, cleaning_of

    header = cache.header
    resampling, cleaning = header.resampling.removesuffix(CLEANED), cleaning_of(header.resampling)
    taps = ", ".join(f"{name} ({width})" for name, width in header.taps.items())
    facts = {
        "data": cache.data_name,
        "recipe": header.recipe or "not named",
        "images": f"{cache.n_images} ({_counts(cache.images)})",
        "missing": _counts(cache.missing),
        "left out": _counts(cache.quarantined),
        "network": f"{header.arch}, weights {header.weights}, sha256 {header.weights_digest[:16]}…",
        "taps": taps,
        "page": f"{header.crop_mode}, {header.size} px, {resampling}, {header.decoder}",
        **({"cleaned": f"--clean {cleaning}"} if cleaning != "none" else {}),
        "computed": f"on {header.device} in {header.precision}, {cache.extraction_s:.1f} s, "
        f"finished {cache.created}",
        "versions": ", ".join(f"{name} {version}" for name, version in cache.versions.items()),
        "file": f"{cache.path}, {cache.n_bytes / 2**20:.1f} MiB",
    }
    if cache.n_parts:
        facts["waiting"] = f"{cache.n_parts} parts; run extract again to put them together"
    return facts


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items()) or "none"


@command(caches, "verify", examples="ecgfeat cache verify cache/pages-resnet18-1a2b3c4d.h5")
def verify(cache: CACHE_FILE, *, output: Output) -> None:
    """Check every byte of a cache against its digest; exit code 1 when it is damaged."""
    from ecgfeat.feature_cache import verify_cache

    findings = verify_cache(cache)
    output.result({"path": str(cache), "findings": findings})
    if findings:
        raise CacheDamagedError("\n".join(findings))
    begun = "" if cache.exists() else " so far; run the same `ecgfeat extract` to finish it"
    output.say(f"{cache} is whole{begun}")


@command(
    caches, "export", examples="ecgfeat cache export cache/pages-resnet18-1a2b3c4d.h5 pages.npz"
)
def export(
    cache: CACHE_FILE,
    npz: Annotated[
        Path,
        typer.Argument(metavar="NPZ", help="File to write, ending in .npz.", show_default=False),
    ],
    *,
    force: FORCE = False,
    layers: Annotated[
        str, typer.Option("--layers", metavar="A[,B]", help="Taps to export; all by default.")
    ] = "",
    output: Output,
) -> None:
    """Write a cache's features, labels and splits to a NumPy .npz file."""
    from ecgfeat.feature_cache import export_cache
    from ecgfeat.files import refuse_overwriting

    if npz.suffix.lower() != ".npz":
        raise ConfigError(f"the file to write must end in .npz; found {npz}")
    refuse_overwriting(npz, b"path.npy", name="NPZ", force=force)
    export_cache(cache, npz, comma_separated(layers))
    output.say(f"exported: {npz}")
    output.result({"path": str(npz)})
