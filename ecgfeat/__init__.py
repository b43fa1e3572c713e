"""Pretrained ResNets on ECG images: frozen features with small heads, and fine-tuning.

The public names are loaded on first use, so that ``import ecgfeat`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfeat.attribution import explain
    from ecgfeat.clean_split import split
    from ecgfeat.comparison import compare, list_runs
    from ecgfeat.config import RECIPES, Recipe
    from ecgfeat.contact_sheet import preview
    from ecgfeat.data_audit import audit
    from ecgfeat.errors import EcgfeatError
    from ecgfeat.extraction import extract
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.finetuning import finetune, resume_finetune
    from ecgfeat.heads import fit_heads
    from ecgfeat.html_report import report
    from ecgfeat.inference import predict
    from ecgfeat.manifest import read_manifest
    from ecgfeat.onnx_export import export_onnx
    from ecgfeat.runs import open_run
    from ecgfeat.runtime import progress
    from ecgfeat.synth import synthesize

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "EcgfeatError",
    "Recipe",
    "__version__",
    "audit",
    "compare",
    "explain",
    "export_onnx",
    "extract",
    "finetune",
    "fit_heads",
    "list_runs",
    "open_cache",
    "open_run",
    "predict",
    "preview",
    "progress",
    "read_manifest",
    "report",
    "resume_finetune",
    "split",
    "synthesize",
]

_HOMES = {
    "RECIPES": "config",
    "EcgfeatError": "errors",
    "Recipe": "config",
    "audit": "data_audit",
    "compare": "comparison",
    "explain": "attribution",
    "export_onnx": "onnx_export",
    "extract": "extraction",
    "finetune": "finetuning",
    "fit_heads": "heads",
    "list_runs": "comparison",
    "open_cache": "feature_cache",
    "open_run": "runs",
    "predict": "inference",
    "preview": "contact_sheet",
    "progress": "runtime",
    "read_manifest": "manifest",
    "report": "html_report",
    "resume_finetune": "finetuning",
    "split": "clean_split",
    "synthesize": "synth",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ecgfeat' has no attribute {name!r}")
    value = getattr(import_module(f"ecgfeat.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
