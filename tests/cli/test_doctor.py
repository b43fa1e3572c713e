"""The doctor on this machine, and on machines with one fault each."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ecgfeat import images, locking
from ecgfeat.backbones import extractor, load_weights
from ecgfeat.cli import _diagnosis as diagnosis
from ecgfeat.cli import app
from ecgfeat.cli._diagnosis import Finding, diagnose
from ecgfeat.config import ComputeSettings, NetworkSettings, PageSettings, SynthSettings
from ecgfeat.errors import Interrupted
from ecgfeat.runtime import silent

CPU = ComputeSettings(device="cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the checks work: on small pages, without patience or a network."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    monkeypatch.setattr(locking, "PATIENCE_S", 0.01)
    monkeypatch.setattr(diagnosis, "PAGE", PageSettings(size="64x48"))
    monkeypatch.setattr(diagnosis, "SCAN", SynthSettings(size="160x120"))
    monkeypatch.setattr(diagnosis, "BUDGET_S", 0.05)
    return tmp_path


def test_a_sound_machine_is_looked_at_and_left_as_it_was(folder):
    before = set(folder.rglob("*"))
    findings = diagnose(cache="caches/one.h5", compute=CPU)
    left = {path.name.partition("_")[0] for path in set(folder.rglob("*")) - before}
    assert left <= {"torchinductor"}  # an empty folder of torch's own
    found = {finding.title: finding for finding in findings}
    assert ", ".join(found) == (
        "packages, extras, processor, cores, memory, cache folder, runs folder, temporary, locks, "
        "decoding, torch, threads, devices, weights, speed on cpu, features"
    )
    assert all(finding.level != "error" and finding.found for finding in findings)
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    assert found["cache folder"].found.startswith("caches: ")
    assert f"numpy {np.__version__}, " in found["packages"].found
    assert found["weights"].found.startswith("~/torch/hub/checkpoints/resnet18-f37072fd.pth isn't")
    assert found["features"].found.startswith("fp32 on cpu, bf16 on cpu: the same (cosine 0.999")
    assert str(folder) not in str(findings)


def test_it_can_be_stopped_while_it_measures(monkeypatch):
    def stop(told):
        if told.stage == "measuring" and told.done:
            raise Interrupted

    monkeypatch.setattr(diagnosis, "BUDGET_S", 60.0)
    with pytest.raises(Interrupted):
        list(diagnosis._carried_out("speed", lambda: diagnosis._speed(CPU, stop)))


def test_a_check_that_fails_is_an_error_and_without_torch_there_is_less_to_check(monkeypatch):
    def fail():
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(diagnosis, "machine", fail)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = diagnose()
    processor, without = (finding for finding in found if finding.level == "error")
    assert processor.title == "processor"
    assert processor.found == "could not be checked: OSError: [Errno 5] no such luck"
    assert without is found[-1]
    assert "can't be loaded together (ModuleNotFoundError: " in without.found


def test_neither_the_home_folder_nor_its_owner_is_named(monkeypatch):
    finding = Finding("x", "ok", "/homes/ann/ (/homes/ann) and ann", "/scratch/ann, /homes/anna.")
    monkeypatch.setenv("HOME", "/homes/ann")
    shown = Finding("x", "ok", "~/ (~) and ann", "/scratch/USER, /homes/anna.")
    assert diagnosis._anonymous(finding) == shown
    monkeypatch.setenv("HOME", "/")
    assert diagnosis._anonymous(finding) == finding


def test_what_is_missing_or_too_old_is_named_with_its_command(monkeypatch):
    found = {"a": "2.9.0", "b": "2.9", "c": "2.10.1+cu130", "d": "2.8.9"}
    needed = ["a>=2.9", "b>=2.9.0", "c>=2.9", "d>=2.9", "e>=1", "g"]
    needed += ['f>=5; extra == "pdf"', 'h>=1; extra == "dev"']
    monkeypatch.setattr(diagnosis.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(diagnosis, "_version", lambda name: found.get(name, ""))
    packages, extras = diagnosis._packages()
    assert (packages.level, extras.level) == ("error", "note")
    assert packages.found.endswith("d 2.8.9, e not installed")
    assert packages.remedy == "pip install --upgrade 'd>=2.9' 'e>=1'"
    assert (extras.found, extras.remedy) == ("f not installed", "pip install --upgrade 'f>=5'")


def test_torchvision_of_another_index_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.setattr(diagnosis, "_version", {"torch": "2.14.1+cpu"}.get)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (found,) = diagnosis._torch()
    assert found.level == "error"
    assert found.found.startswith("torch 2.14.1+cpu, torchvision not installed can't be loaded tog")
    assert found.remedy.endswith("torchvision --index-url https://download.pytorch.org/whl/cpu")


def test_instruction_sets_are_told(monkeypatch):
    for flags, words, level in (
        ("flags : sse2 avx2 avx512_bf16", ": AVX2, AVX512_BF16 (", "ok"),
        ("Features : asimd bf16", ": ASIMD, BF16 (", "ok"),
        ("flags : sse2", ": instruction sets not known here (", "warning"),
    ):
        monkeypatch.setattr(diagnosis, "_text", lambda path, flags=flags: f"x : x\n{flags}\n")
        found, _ = diagnosis._processor()
        assert (found.level, words in found.found) == (level, True)


def test_cores_that_are_missing_or_busy_are_a_note(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for n_usable, load, level in ((8, 4.0, "ok"), (8, 4.1, "note"), (2, 0.0, "note")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        monkeypatch.setattr(diagnosis, "n_cpus", lambda n=n_usable: n)
        _, found = diagnosis._processor()
        assert (found.level, found.found) == (level, f"{n_usable} of 8 usable; load {load}")


def test_threads_are_to_fit_the_cores(monkeypatch):
    def remedy(n_threads, n_cores):
        monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
        monkeypatch.setattr(diagnosis, "n_cpus", lambda: n_cores)
        (found,) = diagnosis._threads()
        assert found.level == ("warning" if found.remedy else "ok")
        return found.remedy

    assert remedy(16, 2) == "export OMP_NUM_THREADS=2"
    assert remedy(1, 8) == ""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert remedy(1, 8) == remedy(1, 2) == "unset OMP_NUM_THREADS"
    assert remedy(4, 8) == remedy(1, 1) == ""  # two threads run on a core, and torch takes one


def test_little_memory_is_a_warning(monkeypatch):
    told = {"/proc/meminfo": f"MemAvailable: {8 * 2**20} kB\n", "box/memory.max": "max"}
    monkeypatch.setattr(diagnosis, "_text", lambda path: told.get(str(path), ""))
    monkeypatch.setattr(diagnosis, "control_groups", lambda: [Path("box")])
    assert [(found.level, found.found[:7]) for found in diagnosis._memory()] == [("ok", "8.0 of ")]
    told["box/memory.max"] = str(2**30)
    (found,) = diagnosis._memory()
    assert (found.level, found.found) == ("warning", "the container's limit is 1.0 GiB")


def test_gpus_are_told_and_one_that_torch_does_not_find_is_a_warning(monkeypatch):
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: f"/bin/{name}")
    (found,) = diagnosis._devices()
    words = "cuda:0 NVIDIA H100 (80.0 GiB), 70.0 GiB of it free, cuda:1 NVIDIA H100 (80.0 GiB), "
    assert (found.level, found.found[: len(words)]) == ("ok", words)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (found,) = diagnosis._devices()
    assert found.level == "warning"
    assert found.found.startswith("an NVIDIA driver is here, but torch finds no GPU: cpu; torch is")
    assert found.remedy.startswith("Install a newer driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert [found.remedy for found in diagnosis._devices()] == ["unset CUDA_VISIBLE_DEVICES"]


def test_a_full_disk_is_a_warning_and_a_file_in_the_way_an_error(folder, monkeypatch):
    (folder / "file").touch(0o755)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    cache, runs, temporary = diagnosis._folders(Path("caches"), Path("file/runs"))
    assert (cache.level, cache.found) == ("warning", "caches: 0.5 GiB free")
    assert (runs.level, runs.found) == ("error", "file/runs: can't be written to")
    assert temporary.remedy.endswith("with the environment variable TMPDIR.")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert {found.level for found in diagnosis._folders(folder, folder)} == {"error"}


def test_locks_that_do_not_hold_are_found(folder, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert [found.level for found in diagnosis._locks(folder)] == ["warning"]
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    assert [found.level for found in diagnosis._locks(folder)] == ["error"]
    assert list(folder.glob(".*")) == []


def test_a_decoder_that_changes_the_page_is_an_error(monkeypatch):
    monkeypatch.setattr(images, "decode", lambda path: np.zeros((120, 160, 3), np.uint8))
    (found,) = diagnosis._carried_out("decoding", diagnosis._decoding)
    assert found.level == "error"
    assert found.found.startswith("JPEG comes out 1")
    assert found.remedy == "pip install --force-reinstall pillow simplejpeg"


def test_weights_are_looked_into(folder):
    def look_into(asked):
        (found,) = diagnosis._carried_out("weights", lambda: diagnosis._weights(asked))
        return f"{found.level}: {found.found}. {found.remedy}"

    weights = load_weights(NetworkSettings(arch="resnet34", weights="random"))
    torch.save(dict(weights.tensors), "other.pth")
    assert "Take --arch resnet34" in look_into("other.pth")
    assert look_into("random").startswith("ok: random:0: resnet18, SHA-256 ")
    hub = folder / "torch/hub/checkpoints"
    hub.mkdir(parents=True)
    (hub / "resnet18-f37072fd.pth").write_text("cut short")
    assert look_into("imagenet").startswith("error: ")


def test_a_device_that_is_not_there_or_computes_otherwise_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = ComputeSettings(device="cuda")
    (missing,) = diagnosis._carried_out("speed", lambda: diagnosis._speed(gpu, silent))
    assert (missing.level, missing.remedy[:14]) == ("error", "Take --device ")
    monkeypatch.setattr(extractor, "MIN_COSINE", 1.1)
    warning, speed, features = diagnosis._speed(CPU, silent)
    assert warning.level == "warning"
    assert "bf16 on cpu: DeviceError: bf16 failed the self-check: cosine" in warning.found
    assert "bf16 (" not in speed.found
    assert features.found.startswith("fp32 on cpu: the same")


def test_the_command_wraps_prose_keeps_commands_whole_and_ends_with_1_on_an_error(monkeypatch):
    command = "pip install --force-reinstall torch torchvision --index-url https://example.org/whl"
    found = [
        Finding("packages", "ok", "Python 3.11.7, " + "torch 2.14.1, " * 9),
        Finding("threads", "warning", "too few", command),
    ]
    monkeypatch.setattr(diagnosis, "diagnose", lambda **_: found)
    done = CliRunner().invoke(app, ["doctor"])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       packages      Python 3.11.7, torch 2.14.1,")
    assert f"                    -> {command}" in lines
    assert all(len(line) <= 80 for line in lines if command not in line)
    assert (done.exit_code, lines[-1]) == (0, "warnings: threads")
    found.append(Finding("torch", "error", "broken", "Mend it." + 20 * " Mend it."))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"findings": [vars(finding) for finding in found]}
