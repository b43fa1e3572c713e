from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ecgfeat import runtime
from ecgfeat.config import ComputeSettings
from ecgfeat.errors import DeviceError
from ecgfeat.runtime import Compute, Progress, resolve_compute, silent


@pytest.fixture
def devices(monkeypatch):
    """Pretend that these devices are there besides the CPU, and how fast bfloat16 is on them."""

    def pretend(*, cuda: int | None = None, mps: bool = False, speedup: float = 2.0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (cuda, 0))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(runtime, "_bfloat16_speedup", lambda device: speedup)

    return pretend


def resolve(purpose: str = "extract", **settings: object) -> Compute:
    return resolve_compute(ComputeSettings(**settings), purpose=purpose)  # type: ignore[arg-type]


def test_importing_it_loads_neither_torch_nor_numpy():
    code = "import sys, ecgfeat.runtime; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_auto_takes_cuda_then_mps_then_the_cpu(devices):
    devices(cuda=9, mps=True)
    assert resolve().device == "cuda"
    devices(mps=True)
    assert resolve().device == "mps"
    devices()
    assert resolve().device == "cpu"


def test_a_device_that_is_not_there_is_refused_with_those_that_are(devices):
    devices(mps=True)
    with pytest.raises(DeviceError) as caught:
        resolve(device="cuda")
    assert str(caught.value) == (
        "--device cuda is asked for, but torch finds only mps, cpu here. Take --device mps or "
        "auto; for cuda, check its driver and that torch was built for it."
    )


@pytest.mark.parametrize(
    ("speedup", "precision", "reason"),
    [
        (2.04, "bf16", "bfloat16 2.0x as fast as float32 here"),
        (1.2, "fp32", "bfloat16 only 1.2x as fast as float32 here"),
        (0.0, "fp32", "bfloat16 only 0.0x as fast as float32 here"),
    ],
)
def test_on_the_cpu_bfloat16_is_taken_where_it_is_clearly_faster(
    devices, speedup, precision, reason
):
    devices(speedup=speedup)
    for purpose in ("extract", "train"):
        compute = resolve(purpose, device="cpu")
        assert (compute.precision, compute.reason) == (precision, reason)


def test_cuda_takes_float16_where_it_has_no_bfloat16(devices):
    devices(cuda=8)
    assert resolve().precision == "bf16"
    devices(cuda=7)
    assert resolve().precision == "fp16"
    with pytest.raises(DeviceError, match="--precision bf16 isn't sound on cuda here; it has fp32"):
        resolve(precision="bf16")


def test_mps_never_has_channels_last_and_trains_in_float32(devices):
    devices(mps=True)
    assert resolve() == Compute(
        device="mps",
        precision="bf16",
        threads=resolve().threads,
        channels_last=False,
        reason="bfloat16 2.0x as fast as float32 here",
    )
    assert resolve("train").precision == "fp32"


def test_float16_on_the_cpu_is_refused(devices):
    devices()
    with pytest.raises(DeviceError) as caught:
        resolve(precision="fp16")
    assert str(caught.value) == (
        "--precision fp16 isn't sound on cpu here; it has fp32, bf16. Ask for one of these, or "
        "for auto."
    )


def test_threads_are_one_per_core_up_to_32_unless_asked_for(devices, monkeypatch):
    devices()
    monkeypatch.setattr(runtime, "n_cpus", lambda: 4)
    assert resolve().threads == 4
    monkeypatch.setattr(runtime, "n_cpus", lambda: 96)
    assert resolve().threads == 32
    assert resolve(threads=40).threads == 40


def test_the_probe_measures_without_touching_the_random_state():
    before = torch.get_rng_state()
    assert runtime._bfloat16_speedup("cpu", budget_s=0.01) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_probe_counts_the_shortest_time_of_each(monkeypatch):
    seconds = {torch.float32: iter([9.0, 4.0, 9.0]), torch.bfloat16: iter([9.0, 8.0, 2.0])}
    ticks = iter([0.0, 0.5, 1.0])
    monkeypatch.setattr(runtime, "_time_layers", lambda layers, dtype: next(seconds[dtype]))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(ticks))
    assert runtime._bfloat16_speedup("cpu", budget_s=1.0) == 2.0


def test_a_device_that_refuses_bfloat16_keeps_float32(monkeypatch):
    def refuse(layers, dtype):
        if dtype is torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return 1.0

    monkeypatch.setattr(runtime, "_time_layers", refuse)
    assert runtime._bfloat16_speedup("cpu") == 0.0


def test_peak_memory_is_in_mib_and_includes_torch():
    assert 100 < runtime.peak_memory_mib() < 100_000


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Pretend to 16 cores, to these control groups, and to limits by their file's path."""

    def pretend(own: str, limits: dict[str, str]) -> None:
        monkeypatch.setattr(runtime, "_OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(runtime, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
        (tmp_path / "own").write_text(own)
        for name, limit in limits.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{limit}\n")

    return pretend


@pytest.mark.parametrize(
    ("limits", "n"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "3200000 100000"}, 16),
        ({"box/inner/cpu.max": "max 100000", "box/cpu.max": "300000 100000"}, 3),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 16),
        (
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ({"a/cpu.max": "100000 100000"}, 16),  # the name of another hierarchy's group
    ],
)
def test_a_container_s_quota_limits_the_cores(groups, limits, n):
    groups("5:memory:/m\n3:cpu,cpuacct:/a\n0::/box/inner\n", limits)
    assert runtime.n_cpus() == n


def test_without_control_groups_the_cores_are_those_it_is_bound_to(groups, tmp_path):
    groups("", {"cpu.max": "100000 100000"})
    assert runtime.n_cpus() == 16
    (tmp_path / "own").unlink()
    assert runtime.n_cpus() == 16


def test_versions_name_what_can_change_a_number():
    found = runtime.versions()
    assert torch.__version__.startswith(found["torch"])
    assert found["numpy"] == np.__version__
    assert {"python", "h5py", "pillow", "scikit-learn"} <= set(found)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(runtime, "PACKAGES", ("numpy", "no-such-package"))
    assert set(runtime.versions()) == {"python", "numpy"}


def test_the_machine_is_described_without_its_name(monkeypatch):
    monkeypatch.setattr(runtime.platform, "node", lambda: "the-host")
    found = runtime.machine()
    assert found["device"] == "cpu"
    assert found["n_cpus"] == runtime.n_cpus() >= 1
    assert "the-host" not in str(found)


def test_the_silent_report_takes_any_progress(capsys):
    silent(Progress(stage="extracting", done=1, total=2))
    assert capsys.readouterr() == ("", "")
