"""Several processes that train one network together, as ``torchrun`` starts them.

Each computes its share of every step's images; their gradients are put together. Whatever stops
one of them stops all at the same step, so that the checkpoint written then is of one mind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from ecgfeat.errors import ConfigError, Interrupted, TrainingError

__all__ = ["ALONE", "Ranks", "joined"]

T = TypeVar("T")

_FAILED = 1000
"""Beyond every signal's number."""
_PATIENCE = timedelta(minutes=30)
"""How long one process waits for another: validation and writing checkpoints go by in it."""


class Ranks:
    """The processes of one training.

    Parameters
    ----------
    rank : int
        This process, from 0. The first one writes for all.
    n_ranks : int
    """

    def __init__(self, rank: int = 0, n_ranks: int = 1) -> None:
        self.rank = rank
        self.n_ranks = n_ranks

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.n_ranks > 1

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """The part of a batch that this process takes; no two differ by more than one image."""
        return rows[self.rank :: self.n_ranks]

    def most_parts(self, n_images: int) -> int:
        """Into how many parts a step's images may go, so that none is too small for batch norm.

        Of each part some process then has two images. It depends on what all of them know: each
        makes as many parts, since synchronised statistics are exchanged part by part.
        """
        return max(1, n_images // (2 * self.n_ranks))

    def with_joint_statistics(self, network: Module, device: str) -> Module:
        """Let batch norm take its statistics over all processes' images; the CPU has none such."""
        if not self.are_several or device != "cuda":
            return network
        convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        return cast(Module, convert(network))  # type: ignore[no-untyped-call]

    def with_joint_gradients(self, network: Module) -> Module:
        """What to call instead of a network, so that every process has all gradients' mean."""
        return DistributedDataParallel(network) if self.are_several else network

    def totals(self, *values: float) -> tuple[float, ...]:
        """Each value summed over the processes."""
        if not self.are_several:
            return values
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return tuple(summed.tolist())

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in their order."""
        if not self.are_several:
            return [value]
        values: list[T] = [value] * self.n_ranks
        dist.all_gather_object(values, value)
        return values

    def take_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give the tensors the first process's values."""
        if self.are_several:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Come out of the block when all do, and stop when one of them is stopped inside it.

        Raises
        ------
        Interrupted
            When any process was asked to stop.
        TrainingError
            When another one failed.
        """
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
            if not self.are_several:
                raise
        if self.are_several:
            self._agree(problem)

    def first_does(self, work: Callable[[], T]) -> T:
        """What `work` gives the first process, which does it for all; the others wait for it.

        Raises
        ------
        Interrupted, TrainingError
            As `together`; in the first process what `work` raises.
        """
        done: list[T] = []
        with self.together():
            if self.rank == 0:
                done.append(work())
        return self.gathered(done)[0][0]

    def _agree(self, problem: Exception | None) -> None:
        code = 0
        if problem is not None:
            code = problem.signal_number if isinstance(problem, Interrupted) else _FAILED
        gravest = torch.tensor(code)
        dist.all_reduce(gravest, op=dist.ReduceOp.MAX)
        if code == _FAILED and problem is not None:
            raise problem
        if gravest == _FAILED:
            raise TrainingError(
                "another process of this training failed: its own message says why. What was "
                "saved is kept."
            )
        if gravest:
            raise Interrupted(int(gravest))

    def in_step(self, items: Iterator[T]) -> Iterator[T]:
        """Hand out every process's own items one by one, each when all have theirs."""
        while True:
            with self.together():
                item = next(items, None)
            if item is None:
                return
            yield item


ALONE = Ranks()
"""The one process of an ordinary training."""


@contextlib.contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the processes that torchrun started; alone where it started none or one.

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}
        With CUDA, each process of a machine takes the GPU of its local rank.
    environment : mapping
        torchrun sets ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``MASTER_ADDR``.

    Raises
    ------
    ConfigError
        When the device can't be shared, or a machine has fewer GPUs than processes.
    TrainingError
        When the other processes can't be reached.
    """
    if environment.get("WORLD_SIZE", "") in ("", "1") or "MASTER_ADDR" not in environment:
        yield ALONE
        return
    _take_device(device, int(environment.get("LOCAL_RANK") or "0"))
    is_own = not dist.is_initialized()  # a program of several jobs may have joined them itself
    try:
        if is_own:
            # Every optimiser loads this. Loaded later, it would keep the group for good, whose
            # threads may then abort a process that ends (seen in torch 2.14).
            import torch._dynamo  # noqa: F401

            # What is agreed upon lies on the CPU; gradients lie where the network does.
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise TrainingError(
            f"the processes of this training don't reach each other ({error}). What was saved is "
            "kept: go on with --resume."
        ) from error
    finally:
        if is_own and dist.is_initialized():
            dist.destroy_process_group()


def _take_device(device: str, local_rank: int) -> None:
    if device == "mps":
        raise ConfigError("several processes can't share MPS: start one, or take --device cpu")
    if device == "cuda":
        n_gpus = torch.cuda.device_count()
        if local_rank >= n_gpus:
            raise ConfigError(
                f"process {local_rank + 1} of this machine has no GPU of its own: there are "
                f"{n_gpus}. Start torchrun with --nproc-per-node {n_gpus}."
            )
        torch.cuda.set_device(local_rank)
