from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Callable
from dataclasses import fields, replace
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

import ecgfeat.backbones.extractor as extractor_module
from ecgfeat.backbones import (
    Backbone,
    CheckPages,
    default_batch_size,
    load_network,
    load_weights,
    network_from_tensors,
)
from ecgfeat.config import ARCHITECTURES, TAPS, NetworkSettings, PageSettings
from ecgfeat.errors import DeviceError, RunError, StorageError, WeightsError
from ecgfeat.images import decode, prepare
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing
from ecgfeat.runs import Cost
from ecgfeat.runtime import Compute

from .conftest import draw_page

FP32 = Compute(device="cpu", precision="fp32", threads=1, channels_last=True, reason="asked for")
BF16 = replace(FP32, precision="bf16")
SMALL = Preprocessing.from_settings(PageSettings(crop_mode="center", size="96x64"))
QUICK_ARCHITECTURES = ("resnet18", "resnet50")
OTHER_ARCHITECTURES = tuple(arch for arch in ARCHITECTURES if arch not in QUICK_ARCHITECTURES)

StateDict = dict[str, torch.Tensor]


def random_state_dict(arch: str) -> StateDict:
    """A ResNet's weights with batch norm statistics that are not the identity."""
    torch.manual_seed(5)
    network = torchvision.models.get_model(arch, weights=None)
    tensors = network.state_dict()
    for name, value in tensors.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.3)
            tensors[name.replace("running_mean", "running_var")].uniform_(0.5, 2)
            tensors[name.replace("running_mean", "bias")].normal_(0, 0.3)
            tensors[name.replace("running_mean", "weight")].uniform_(0.3, 1)
    return tensors


@pytest.fixture(scope="session")
def resnet18() -> StateDict:
    return random_state_dict("resnet18")


@pytest.fixture
def weights_path(resnet18: StateDict, tmp_path: Path) -> Path:
    return save(resnet18, tmp_path / "weights.pth")


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def load(weights: object = "random", arch: str = "resnet18", compute: Compute = FP32) -> Backbone:
    return Backbone(load_weights(NetworkSettings(arch=arch, weights=str(weights))), SMALL, compute)


def refusal(weights: object, arch: str = "resnet18") -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(NetworkSettings(arch=arch, weights=str(weights)))
    return str(caught.value)


def pages(n_pages: int, seed: int = 0) -> NDArray[np.uint8]:
    drawn = [draw_page(seed + i, i % 2, (SMALL.width_px, SMALL.height_px)) for i in range(n_pages)]
    return np.stack([np.asarray(page) for page in drawn])


def torchvision_features(
    arch: str, tensors: StateDict, images: torch.Tensor
) -> dict[str, NDArray[np.float32]]:
    """The four average pools as anyone would compute them; `images` are normalised."""
    network = torchvision.models.get_model(arch, weights=None)
    network.load_state_dict(tensors)
    network.eval()
    pools = {}
    for tap in TAPS:
        network.get_submodule(tap).register_forward_hook(
            lambda _module, _inputs, output, tap=tap: pools.update({tap: output.mean((2, 3))})
        )
    with torch.no_grad():
        network(images)
    return {tap: pool.numpy() for tap, pool in pools.items()}


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return torch.stack([transform(page) for page in pixels])


def assert_close_to(
    found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]
) -> None:
    for tap in TAPS:
        difference = np.abs(found[tap] - expected[tap]).max(axis=1)
        assert (difference <= 1e-4 * np.abs(expected[tap]).max(axis=1)).all()


def cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(axis=1) / lengths


@pytest.mark.isa
@pytest.mark.parametrize("arch", QUICK_ARCHITECTURES)
def test_float32_features_equal_plain_torchvision(arch, tmp_path):
    tensors = random_state_dict(arch)
    backbone = load(save(tensors, tmp_path / "weights.pth"), arch)
    found = backbone.features(pages(3))
    assert {tap: values.shape for tap, values in found.items()} == {
        tap: (3, width) for tap, width in backbone.taps.items()
    }
    assert all(values.dtype == np.float32 for values in found.values())
    assert_close_to(found, torchvision_features(arch, tensors, normalised(pages(3))))


@pytest.mark.slow
@pytest.mark.parametrize("arch", OTHER_ARCHITECTURES)
def test_float32_features_of_the_others_equal_plain_torchvision(arch, tmp_path):
    test_float32_features_equal_plain_torchvision(arch, tmp_path)


@pytest.mark.parametrize(
    "every", [pytest.param(25, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("data", ["ludb-pages", "mendeley-sheets"])
def test_float32_layer4_equals_a_torchvision_script_on_real_images(
    data, every, shared_data, shared_weights
):
    tensors = torch.load(shared_weights, weights_only=True)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    preprocessing = Preprocessing.from_settings(PageSettings(crop_mode="center", size="224"))
    weights = load_weights(NetworkSettings(weights=str(shared_weights)))
    backbone = Backbone(weights, preprocessing, FP32)
    sources = sorted((shared_data / data / "images").rglob("*.*"))
    assert len(sources) >= 60
    sources = sources[::every]
    for start in range(0, len(sources), 8):
        batch = sources[start : start + 8]
        ours = [prepare(decode(path), preprocessing) for path in batch]
        plain = [transform(Image.open(path).convert("RGB")) for path in batch]
        expected = torchvision_features("resnet18", tensors, torch.stack(plain))
        assert_close_to(backbone.features(np.stack(ours)), expected)


@pytest.mark.isa
def test_bfloat16_features_point_where_those_of_float32_do(weights_path):
    backbone = load(weights_path, compute=BF16)
    assert backbone.compute == BF16
    found, expected = backbone.features(pages(4)), load(weights_path).features(pages(4))
    assert not np.array_equal(found["layer4"], expected["layer4"])
    assert all((cosines(found[tap], expected[tap]) >= 0.999).all() for tap in TAPS)


@pytest.mark.isa
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "arch",
    ["resnet18", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHITECTURES[2:])],
)
def test_features_depend_neither_on_the_other_images_nor_on_the_place(arch, compute):
    backbone = load(arch=arch, compute=compute)
    batch = pages(8)
    alone = backbone.features(np.repeat(batch[:1], 8, axis=0))
    for place in (0, 3, 7):
        mixed = np.roll(np.concatenate([batch[:1], pages(7, seed=20 + place)]), place, axis=0)
        found = backbone.features(mixed)
        for tap in TAPS:
            np.testing.assert_array_equal(found[tap][place], alone[tap][0])


def test_features_in_the_plain_memory_layout_are_the_same(weights_path):
    plain = load(weights_path, compute=replace(FP32, channels_last=False))
    assert_close_to(plain.features(pages(2)), load(weights_path).features(pages(2)))


def test_the_taps_have_the_widths_of_the_family():
    assert dict(load().taps) == dict(zip(TAPS, (64, 128, 256, 512)))
    assert dict(load(arch="resnet50").taps) == dict(zip(TAPS, (256, 512, 1024, 2048)))


def disturb(monkeypatch, is_wrong: Callable[[Compute], bool]) -> None:
    """Let every engine whose compute `is_wrong` give features of its own."""
    sound = extractor_module.Engine.features

    def features(engine, pixels):
        found = sound(engine, pixels)
        if is_wrong(engine.compute):
            found["layer3"] = found["layer3"][:, ::-1]
        return found

    monkeypatch.setattr(extractor_module.Engine, "features", features)


def test_a_precision_that_fails_the_self_check_gives_way_to_float32(monkeypatch):
    disturb(monkeypatch, lambda compute: compute.precision == "bf16")
    backbone = load(compute=BF16)
    assert backbone.compute.precision == "fp32"
    assert backbone.compute.reason.startswith("bf16 failed the self-check: cosine 0.")
    assert backbone.compute.reason.endswith(" to float32 at layer3")
    np.testing.assert_array_equal(
        backbone.features(pages(2))["layer4"], load().features(pages(2))["layer4"]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_fail_the_self_check(monkeypatch, value):
    sound = extractor_module.Engine.features

    def features(engine, pixels):
        found = sound(engine, pixels)
        is_exact = engine.compute.precision == "fp32"
        return found if is_exact else {k: v * 0 + value for k, v in found.items()}

    monkeypatch.setattr(extractor_module.Engine, "features", features)
    reason = "bf16 failed the self-check: cosine nan to float32 at layer1"
    assert load(compute=BF16).compute == replace(FP32, reason=reason)


def test_a_device_whose_float32_is_wrong_is_refused(monkeypatch):
    # The meta device stands in for one that is there but computes nonsense.
    def features(engine, pixels):
        values = np.ones((len(pixels), 2), np.float32)
        if engine.compute.device == "meta":
            values[:, 1] = -1
        return {"layer1": values}

    monkeypatch.setattr(extractor_module.Engine, "features", features)
    with pytest.raises(DeviceError) as caught:
        load(compute=replace(BF16, device="meta"))
    assert str(caught.value) == (
        "the device meta computes other features than the CPU (cosine 0.0000 to float32 at "
        "layer1). Take --device cpu, and look for a newer version of torch or of the device's "
        "driver."
    )


@pytest.mark.isa
def test_the_self_check_compares_the_pages_given_with_the_exact_ones():
    exact = pages(2)
    weights = load_weights(NetworkSettings(weights="random"))
    alike = CheckPages(given=exact ^ 1, exact=exact)
    assert Backbone(weights, SMALL, BF16, check=alike).compute == BF16
    others = CheckPages(given=255 - exact, exact=exact)
    found = Backbone(weights, SMALL, BF16, check=others).compute
    assert found.precision == "fp32"
    assert found.reason.startswith("bf16 failed the self-check: cosine 0.")


@pytest.mark.isa
def test_lanes_give_the_features_in_order_and_to_the_bit(weights_path):
    backbone = load(weights_path, compute=BF16)
    batches = [pages(4, seed=10 * number) for number in range(6)]
    expected = [backbone.features(batch) for batch in batches]
    n_threads = torch.get_num_threads()
    try:
        for n_lanes in (1, 3):
            torch.set_num_threads(n_lanes)
            with backbone.lanes() as lanes:
                assert lanes.n_lanes == n_lanes
                started = [lanes.start(batch) for batch in batches]
                found = [pending.result() for pending in started]
            assert torch.get_num_threads() == n_lanes
            for one, other in zip(found, expected):
                for tap in TAPS:
                    np.testing.assert_array_equal(one[tap], other[tap])
    finally:
        torch.set_num_threads(n_threads)


def test_lanes_hand_on_what_goes_wrong_in_them(monkeypatch):
    backbone = load()
    monkeypatch.setattr(backbone._engine, "features", lambda pixels: 1 / 0)
    with backbone.lanes() as lanes, pytest.raises(ZeroDivisionError):
        lanes.start(pages(1)).result()


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GB, max allowed: 9.1 GB)."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


def with_room_for(backbone, monkeypatch, n_images: int, error: Exception, device: str) -> list[int]:
    """Let the engine pretend to be a device that holds so many images; gives the sizes tried."""
    sound, tried = backbone._engine.features, []

    def features(pixels):
        tried.append(len(pixels))
        if len(pixels) > n_images:
            raise error
        return sound(pixels)

    monkeypatch.setattr(backbone._engine, "features", features)
    monkeypatch.setattr(
        backbone._engine, "compute", replace(backbone.compute, device=device, precision="fp32")
    )
    monkeypatch.setattr("ecgfeat.backbones.extractor.free_device_memory", lambda device: None)
    return tried


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "mps", "cudnn"])
def test_a_device_out_of_memory_computes_in_smaller_batches_from_then_on(monkeypatch, error):
    backbone = load()
    expected = backbone.features(pages(7))
    tried = with_room_for(backbone, monkeypatch, 2, error, "mps")
    assert backbone.largest_batch is None
    assert_close_to(backbone.features(pages(7)), expected)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert backbone.largest_batch == 1
    tried.clear()
    assert_close_to(backbone.features(pages(4)), {k: v[:4] for k, v in expected.items()})
    assert tried == [1, 1, 1, 1]


def test_smaller_batches_are_filled_up_so_that_all_are_of_one_size(monkeypatch):
    backbone = load()
    expected = backbone.features(pages(7))
    tried = with_room_for(backbone, monkeypatch, 3, OUT_OF_MEMORY[0], "mps")
    found = backbone.features(pages(7))
    assert tried == [7, 3, 3, 3]
    assert {len(values) for values in found.values()} == {7}
    assert_close_to(found, expected)


def test_a_device_too_small_for_one_image_is_refused(monkeypatch):
    backbone = load()
    with_room_for(backbone, monkeypatch, 0, OUT_OF_MEMORY[0], "mps")
    with pytest.raises(DeviceError) as caught:
        backbone.features(pages(2))
    assert str(caught.value) == (
        "the memory of mps is too small for a single image: take a smaller --size, or --device "
        "cpu (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 9 bytes."
        ),
    ],
    ids=["numpy", "torch"],
)
def test_on_the_cpu_a_lack_of_memory_is_told_with_the_mend(monkeypatch, error):
    backbone = load()
    with_room_for(backbone, monkeypatch, 0, error, "cpu")
    with pytest.raises(DeviceError, match="smaller --batch-size or --size, or fewer --threads"):
        backbone.features(pages(2))


def test_other_errors_of_a_device_are_not_taken_for_a_lack_of_memory(monkeypatch):
    backbone = load()
    tried = with_room_for(backbone, monkeypatch, 0, RuntimeError("an illegal access"), "mps")
    with pytest.raises(RuntimeError, match="an illegal access"):
        backbone.features(pages(2))
    assert tried == [2]


@pytest.mark.parametrize(
    "every", [pytest.param(100, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("data", ["ludb-pages", "mendeley-sheets"])
def test_the_default_s_features_of_real_images_point_where_torchvision_s_do(
    data, every, shared_data, shared_weights
):
    """Both what ``auto`` saves: bfloat16, and torch's resize."""
    tensors = torch.load(shared_weights, weights_only=True)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    page = PageSettings(crop_mode="center", size="224")
    preprocessing = Preprocessing.from_settings(page, resampling=FAST_RESAMPLING)
    weights = load_weights(NetworkSettings(weights=str(shared_weights)))
    backbone = Backbone(weights, preprocessing, BF16)
    sources = sorted((shared_data / data / "images").rglob("*.*"))[::every]
    least = 1.0
    for start in range(0, len(sources), 8):
        batch = sources[start : start + 8]
        found = backbone.features(
            np.stack([prepare(decode(path), preprocessing) for path in batch])
        )
        plain = [transform(Image.open(path).convert("RGB")) for path in batch]
        expected = torchvision_features("resnet18", tensors, torch.stack(plain))
        least = min(least, *(cosines(found[tap], expected[tap]).min() for tap in TAPS))
    print(f"{data}: cosine at least {least:.5f}")
    assert least >= 0.999


def test_random_weights_are_seeded_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    first, again, other = (load_weights(NetworkSettings(weights=f"random:{s}")) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.digest == again.digest != other.digest
    assert first.name == "random:7"


def test_random_without_a_seed_is_seed_0():
    unseeded = load_weights(NetworkSettings(weights="random"))
    assert unseeded.name == "random:0"
    assert unseeded.digest == load_weights(NetworkSettings(weights="random:0")).digest


@pytest.mark.parametrize("asked", ["random:", "random:x", "random:-1", "random:²"])
def test_a_seed_that_is_no_number_is_refused(asked):
    assert refusal(asked) == (
        f"--weights random:SEED needs a whole number, such as random:0; found {asked!r}"
    )


def test_the_digest_is_of_the_weights_and_not_of_the_file(resnet18, tmp_path):
    headless = {name: value for name, value in resnet18.items() if not name.startswith("fc.")}
    uncounted = {n: value for n, value in resnet18.items() if "num_batches_tracked" not in n}
    safetensors.torch.save_file(resnet18, tmp_path / "plain.safetensors")
    variants = [
        tmp_path / "plain.safetensors",
        save(resnet18, tmp_path / "plain.pth"),
        save({**headless, "fc.weight": torch.ones(7, 512)}, tmp_path / "seven-classes.pth"),
        save(uncounted, tmp_path / "old.pt"),
    ]
    digests = {load_weights(NetworkSettings(weights=str(path))).digest for path in variants}
    assert len(digests) == 1
    changed = {**headless, "conv1.weight": headless["conv1.weight"] + 1e-3}
    other = save(changed, tmp_path / "changed.pth")
    assert load_weights(NetworkSettings(weights=str(other))).digest not in digests


def prefixed(prefix: str, tensors: StateDict) -> StateDict:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def without_classifier(tensors: StateDict) -> StateDict:
    return {name: value for name, value in tensors.items() if not name.startswith("fc.")}


def as_sequential(tensors: StateDict) -> StateDict:
    network = torchvision.models.resnet18()
    network.load_state_dict(tensors)
    return torch.nn.Sequential(*list(network.children())[:-1]).state_dict()


@pytest.mark.parametrize(
    ("wrap", "stranger"),
    [
        (lambda plain: {"state_dict": plain, "epoch": 3, "best": 0.71}, ""),
        (lambda plain: {"model_state_dict": plain, "optimizer": {"state": {}}}, ""),
        (lambda plain: {"net": prefixed("module.", plain), "acc": 93.1}, ""),
        (lambda plain: {"ema": {"shadow": plain}}, ""),
        (lambda plain: prefixed("_orig_mod.", plain), ""),
        (lambda plain: prefixed("module.backbone.", plain), ""),
        (lambda plain: prefixed("encoder.", without_classifier(plain)), ""),
        (
            lambda plain: {"state_dict": {**prefixed("model.", plain), "loss.w": torch.ones(2)}},
            "loss.w",
        ),
        (
            lambda plain: {
                **prefixed("backbone.", without_classifier(plain)),
                "projection.0.weight": torch.zeros(3, 512),
            },
            "projection.0.weight",
        ),
        (as_sequential, ""),
        (lambda plain: prefixed("features.", as_sequential(plain)), ""),
    ],
    ids=[
        *("state_dict", "model_state_dict", "net", "ema", "_orig_mod.", "module.backbone."),
        *("encoder.", "loss", "projection", "sequential", "features."),
    ],
)
def test_a_checkpoint_s_backbone_is_found_and_strangers_are_named(
    resnet18, tmp_path, wrap, stranger
):
    path = save(wrap(resnet18), tmp_path / "weights.pth")
    found = load_weights(NetworkSettings(weights=str(path)))
    plain = save(resnet18, tmp_path / "plain.pth")
    assert found.digest == load_weights(NetworkSettings(weights=str(plain))).digest
    said = f"{path}: 1 tensors are no part of resnet18 and are left aside ({stranger})"
    assert found.note == (said if stranger else "")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".tar", ".ckpt"])
def test_the_usual_suffixes_of_pytorch_are_read(resnet18, tmp_path, suffix):
    path = save(resnet18, tmp_path / f"weights{suffix}")
    assert load_weights(NetworkSettings(weights=str(path))).name == str(path)


def test_where_two_networks_fit_one_is_asked_for(resnet18, tmp_path):
    other = random_state_dict("resnet18")
    other["conv1.weight"] = other["conv1.weight"] + 1
    path = save({"model": resnet18, "ema": prefixed("module.", other)}, tmp_path / "two.pth")
    assert refusal(path) == (
        f"{path} holds more than one resnet18, under model, ema.module: say which with "
        f"--weights '{path}#model'"
    )
    chosen = load_weights(NetworkSettings(weights=f"{path}#ema.module"))
    assert torch.equal(chosen.tensors["conv1.weight"], other["conv1.weight"])
    assert chosen.name == f"{path}#ema.module"
    assert refusal(f"{path}#head") == (
        f"{path} holds no resnet18 under 'head'; it has one under model, ema.module"
    )


def test_one_network_under_two_keys_is_one(resnet18, tmp_path):
    path = save({"model": resnet18, "state_dict": dict(resnet18)}, tmp_path / "twice.pth")
    assert load_weights(NetworkSettings(weights=str(path))).note == ""


def test_mappings_that_hold_themselves_and_endless_prefixes_end(tmp_path):
    itself: dict[str, object] = {}
    itself["state_dict"] = itself
    assert "holds no plain state dict" in refusal(save(itself, tmp_path / "self.pth"))
    pair: dict[str, object] = {}
    pair["model"] = {"state_dict": pair}
    assert "holds no plain state dict" in refusal(save(pair, tmp_path / "pair.pth"))
    endless = save({"module." * 2000 + "x": torch.zeros(1)}, tmp_path / "endless.pth")
    said = refusal(endless)
    assert "100 of 100 tensors are missing" in said
    assert len(said) < 1000


def test_half_precision_becomes_float32(resnet18, tmp_path):
    halves = {name: value.half() for name, value in resnet18.items()}
    singles = {name: value.float() for name, value in halves.items()}
    found = load_weights(NetworkSettings(weights=str(save(halves, tmp_path / "half.pth"))))
    assert {value.dtype for value in found.tensors.values()} == {torch.float32}
    same = load_weights(NetworkSettings(weights=str(save(singles, tmp_path / "single.pth"))))
    assert found.digest == same.digest


def test_the_name_of_a_file_is_its_absolute_path(weights_path, monkeypatch):
    monkeypatch.chdir(weights_path.parent)
    assert load(weights_path.name).weights_name == str(weights_path.resolve())


def run_folder(folder: Path, tensors: dict[str, torch.Tensor], kind: str, split: str) -> Path:
    """A finished run, as far as its weights are looked at."""
    folder.mkdir()
    config = {"format_version": 1, "kind": kind, "data": "pages"}
    (folder / "config.json").write_text(json.dumps(config))
    texts = ("arch", "device", "precision")
    cost = {field.name: "" if field.name in texts else 0 for field in fields(Cost)}
    metrics = {
        "split": split,
        "cost": cost,
        "test_rows": "all 2",
        "classes": ["a", "b"],
        "positive": "b",
        "scores": {},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_folder_of_a_fine_tuning_run_serves_as_weights(resnet18, tmp_path):
    head = {"fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)}
    folder = run_folder(tmp_path / "run", {**resnet18, **head}, "finetune", "test")
    found = load_weights(NetworkSettings(weights=str(folder)))
    assert found.name == str(folder.resolve())
    assert not any(name.startswith("fc.") for name in found.tensors)
    # The head apart, the same tensors: the same digest, whatever they came in.
    assert found.digest == load(save(resnet18, tmp_path / "weights.pth")).digest
    with pytest.raises(WeightsError, match="holds the weights of resnet18, but the architecture"):
        load_weights(NetworkSettings(arch="resnet34", weights=str(folder)))


def test_the_folder_of_a_head_s_run_is_refused(tmp_path):
    head = {"weight": torch.ones(2, 512), "bias": torch.ones(2)}
    folder = run_folder(tmp_path / "run", head, "linear", "test")
    assert refusal(folder) == (
        f"{folder} is a run of kind 'linear', whose head reads the features of another network's "
        "weights and holds none. Give those weights, or the folder of a fine-tuning run."
    )


def test_a_cross_validated_or_unfinished_fine_tuning_is_refused(resnet18, tmp_path):
    folder = run_folder(tmp_path / "run", resnet18, "finetune", "cv")
    with pytest.raises(RunError, match="keeps no model: it is a cross-validation"):
        load_weights(NetworkSettings(weights=str(folder)))
    (folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="is unfinished"):
        load_weights(NetworkSettings(weights=str(folder)))


def test_weights_of_another_architecture_are_named(tmp_path):
    path = save(random_state_dict("resnet34"), tmp_path / "weights.pth")
    assert refusal(path) == (
        f"{path} holds the weights of resnet34, but the architecture asked for is resnet18. "
        "Take --arch resnet34, or give weights of resnet18."
    )


def test_the_wide_variant_is_told_from_the_plain_one_by_its_shapes(tmp_path):
    path = save(random_state_dict("wide_resnet50_2"), tmp_path / "weights.pth")
    assert "holds the weights of wide_resnet50_2" in refusal(path, "resnet50")


def test_what_does_not_fit_is_named_and_counted(resnet18, tmp_path):
    wrong = {name: value for name, value in resnet18.items() if not name.startswith("layer1.")}
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    wrong["head.weight"] = torch.zeros(2, 512)
    path = save(wrong, tmp_path / "weights.pth")
    assert refusal(path) == (
        f"{path} doesn't fit resnet18: 20 of 100 tensors are missing (layer1.0.conv1.weight, "
        "layer1.0.bn1.weight, layer1.0.bn1.bias and 17 more), 1 don't belong to it "
        "(head.weight), 1 have another shape (conv1.weight is 64×1×7×7 instead of 64×3×7×7). "
        "Give a state dict of torchvision's resnet18, or the --arch that it was saved from."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(resnet18, tmp_path, value):
    poisoned = resnet18["layer2.0.conv1.weight"].clone()
    poisoned[3, 2, 1, 0] = value
    path = save({**resnet18, "layer2.0.conv1.weight": poisoned}, tmp_path / "weights.pth")
    assert refusal(path) == (
        f"{path}: layer2.0.conv1.weight holds NaN or infinity, so every feature would be "
        "meaningless. The training that made it diverged, or the file is damaged: give other "
        "weights."
    )


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda value: value.to(torch.int8), "torch.int8 (torch.strided)"),
        (lambda value: value.to_sparse(), "torch.float32 (torch.sparse_coo)"),
    ],
    ids=["int8", "sparse"],
)
def test_quantised_or_sparse_weights_are_refused(resnet18, tmp_path, made, kind):
    odd = {**resnet18, "conv1.weight": made(resnet18["conv1.weight"])}
    path = save(odd, tmp_path / "weights.pth")
    assert refusal(path) == (
        f"{path}: conv1.weight must hold plain floating-point numbers; found {kind}. Save the "
        "weights before quantising or pruning them."
    )


@pytest.mark.parametrize("asked", ["none.pth", "imagenett"])
def test_an_absent_file_is_refused_with_what_weights_may_be(asked):
    assert refusal(asked) == (
        f"there is no file {asked}: --weights takes imagenet, random, random:SEED, or the path "
        "of a state dict (.pth or .safetensors) or of a fine-tuning's folder"
    )


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path} is a folder, but no run: give the file of a state dict (.pth or "
        ".safetensors), or the folder of a fine-tuning run"
    )


@pytest.mark.parametrize("name", ["empty.pth", "empty.safetensors"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    message = f"{tmp_path / name} is empty: copy or download it again"
    assert refusal(tmp_path / name) == message


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"onnx")
    assert refusal(tmp_path / "weights.onnx") == (
        "weights must be a .pth, .pt, .ckpt, .bin, .tar, .safetensors file; found "
        f"{tmp_path / 'weights.onnx'}. If it holds a state dict, rename it."
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"weights{suffix}"
    write = torch.save if suffix == ".pth" else safetensors.torch.save_file
    write({"conv1.weight": torch.rand(64, 3, 7, 7)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    kind = "PyTorch" if suffix == ".pth" else "safetensors"
    assert refusal(path) == (
        f"{path} can't be read as a {kind} file: it is damaged, cut short or something else. "
        "Copy or download it again."
    )


def test_a_file_of_nonsense_is_refused(tmp_path):
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("<html>404: not found</html>")
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name} can't be read as a ")


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, capsys):
    path = save({"conv1.weight": Hostile()}, tmp_path / "weights.pth")
    assert refusal(path) == (
        f"{path} holds Python objects besides tensors, which could run code and are not loaded. "
        "Save the weights alone: torch.save(model.state_dict(), PATH)."
    )
    assert capsys.readouterr().out == ""


def test_a_pickled_model_is_refused(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "weights.pth")
    assert "holds Python objects besides tensors" in refusal(path)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ([1, 2], "holds no state dict (names with tensors) but list."),
        ({}, "holds no state dict (names with tensors) but an empty mapping."),
        ({"epoch": 3}, "holds no plain state dict: 'epoch' is a int, not a tensor."),
    ],
    ids=["list", "empty", "numbers"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, finding):
    path = save(content, tmp_path / "weights.pth")
    assert refusal(path) == (f"{path} {finding} Save it with torch.save(model.state_dict(), PATH).")


def test_a_disk_that_does_not_read_is_named(weights_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=f"reading {weights_path} failed: the device reported"):
        load(weights_path)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    """Where torch keeps what it downloads, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


class Response(io.BytesIO):
    def info(self) -> Message:
        return Message()


def answer(monkeypatch, reply: object) -> list[float | None]:
    """Let every download end in `reply`; returns the time-outs that were in force."""
    timeouts = []

    def urlopen(request):
        timeouts.append(socket.getdefaulttimeout())
        if isinstance(reply, Exception):
            raise reply
        return Response(reply)

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return timeouts


RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (
            URLError(socket.gaierror(-2, "Name or service not known")),
            "Name or service not known",
        ),
        (URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (HTTPError(RESNET18_URL, 403, "Forbidden", Message(), None), "HTTP Error 403: Forbidden"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=["name", "refused", "timeout", "http", "disk"],
)
def test_a_download_that_fails_names_the_ways_out(checkpoints, monkeypatch, reply, cause):
    timeouts = answer(monkeypatch, reply)
    before = socket.getdefaulttimeout()
    assert refusal("imagenet") == (
        f"the ImageNet weights of resnet18 can't be downloaded from {RESNET18_URL} ({cause}). "
        "Give weights of your own with --weights PATH; or download that file elsewhere and put "
        f"it at {checkpoints / 'resnet18-f37072fd.pth'}; or go on untrained with --weights "
        "random."
    )
    assert timeouts == [5.0]
    assert socket.getdefaulttimeout() == before
    assert list(checkpoints.iterdir()) == []


def test_a_download_with_another_hash_is_thrown_away(checkpoints, monkeypatch):
    answer(monkeypatch, b"something else")
    cause = "(what arrived is cut short or altered: its SHA-256 is another)"
    assert f"resnet18-f37072fd.pth {cause}. Give weights of your own" in refusal("imagenet")
    assert list(checkpoints.iterdir()) == []


def test_a_file_with_another_hash_in_torchs_folder_is_refused(checkpoints):
    checkpoints.mkdir(parents=True)
    path = checkpoints / "resnet18-f37072fd.pth"
    path.write_bytes(b"half a download")
    assert refusal("imagenet") == (
        f"{path} isn't the file that torchvision published: its SHA-256 should begin with "
        "f37072fd. Delete it, and the next run downloads it again."
    )


def test_a_download_is_kept_and_not_repeated(checkpoints, monkeypatch, weights_path, capsys):
    content = weights_path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    published = torchvision.models.ResNet18_Weights.DEFAULT.value
    url = f"https://example.org/resnet18-{digest[:8]}.pth"
    monkeypatch.setitem(vars(published), "url", url)
    requests = answer(monkeypatch, content)
    first, second = load("imagenet"), load("imagenet")
    assert len(requests) == 1
    assert first.weights_name == "imagenet"
    assert first.digest == second.digest == load(weights_path).digest
    assert (checkpoints / f"resnet18-{digest[:8]}.pth").read_bytes() == content
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "hub").write_text("a file in the way")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(StorageError, match=f"making {tmp_path}/hub/checkpoints failed"):
        load("imagenet")


def test_a_network_to_fine_tune_has_the_weights_asked_for_under_a_new_layer(weights_path):
    settings = NetworkSettings(weights=str(weights_path))
    network = load_network(settings, n_classes=3, seed=1)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    found = network.state_dict()
    for name, value in load_weights(settings).tensors.items():
        assert torch.equal(found[name], value)
    assert found["fc.weight"].shape == (3, 512)
    loss = network(torch.rand(2, 3, 64, 64)).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_new_layer_is_seeded_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, again, other = (
        load_network(NetworkSettings(weights="random"), n_classes=2, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["fc.weight"], again["fc.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_network_comes_back_from_the_tensors_a_run_kept():
    network = load_network(NetworkSettings(weights="random"), n_classes=2, seed=0).eval()
    kept = {name: value.numpy() for name, value in network.state_dict().items()}
    again = network_from_tensors("resnet18", 2, kept).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_tensors_of_another_number_of_classes_are_refused():
    network = load_network(NetworkSettings(weights="random"), n_classes=2, seed=0)
    kept = {name: value.numpy() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"fc\.weight is 2×512 instead of 3×512"):
        network_from_tensors("resnet18", 3, kept)


@pytest.mark.parametrize(
    ("size", "n_images"), [("64", 8), ("224", 8), ("448x320", 3), ("896x640", 1), ("2048", 1)]
)
def test_a_batch_on_the_cpu_holds_as_many_images_as_stay_in_its_caches(
    size: str, n_images: int
) -> None:
    page = PageSettings(size=size)
    assert default_batch_size(FP32, page) == n_images
    assert default_batch_size(replace(FP32, device="cuda"), page) == 128
