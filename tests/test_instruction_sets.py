"""What hangs on the processor's instructions, run a second time as on one with AVX2 only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # read once at start-up
ROOT = Path(__file__).parents[1]


def test_what_hangs_on_the_processor_passes_without_avx_512() -> None:
    if all(os.environ.get(name) == value for name, value in AVX2.items()):
        pytest.skip("this very run is one without AVX-512")
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this processor has no AVX-512, so this very run is one without")
    files = sorted({path for path in (ROOT / "tests").rglob("test_*.py") if is_marked(path)})
    assert files
    command = [sys.executable, "-m", "pytest", "-q", "-m", "isa and not slow", "-n", "0", *files]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **AVX2}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def is_marked(path: Path) -> bool:
    return "@pytest.mark.isa" in path.read_text(encoding="utf-8")
