"""What a tap makes of a layer's maps: one number per channel and cell, in float32."""

from __future__ import annotations

import torch

from ecgfeat.config import Tap

__all__ = ["pooled"]


def pooled(maps: torch.Tensor, tap: Tap) -> torch.Tensor:
    """Pool each channel over the page, or in each cell of the tap's grid.

    Cells are those of torch's ``adaptive_avg_pool2d``: cell i of k over n pixels is from
    floor(i n / k) to ceil((i + 1) n / k), so that they share a row where k doesn't divide n. Its
    own kernels are not used: below float32 they round the result, and on MPS they refuse such n.

    Parameters
    ----------
    maps : Tensor of shape (b, channels, height, width)
    tap : Tap

    Returns
    -------
    Tensor of shape (b, n_cells × channels), float32
        Cell by cell, as one reads a page, each with all of its channels.
    """
    pool = POOLS[tap.pool]
    if tap.n_cells == 1:
        return pool(maps)
    height, width = maps.shape[2:]
    # Copied, since the CPU pools what doesn't lie together up to ten times as slowly.
    cells = [
        pool(maps[:, :, top:bottom, left:right].clone())
        for top, bottom in _spans(height, tap.rows)
        for left, right in _spans(width, tap.columns)
    ]
    return torch.cat(cells, dim=1)


def _spans(n_px: int, n_cells: int) -> list[tuple[int, int]]:
    return [(i * n_px // n_cells, -(-(i + 1) * n_px // n_cells)) for i in range(n_cells)]


def _average(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean((2, 3), dtype=torch.float32)


def _maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps.amax((2, 3)).float()


def _standard_deviation(maps: torch.Tensor) -> torch.Tensor:
    """Of the pixels there are (divided by n). torch's own takes ten times as long on the CPU."""
    exact = maps.float()
    squares = (exact - exact.mean((2, 3), keepdim=True)).square_()
    return squares.mean((2, 3)).sqrt_()


POOLS = {"avg": _average, "max": _maximum, "std": _standard_deviation}
"""By a tap's `pool`; each takes maps (b, channels, height, width) to (b, channels), float32."""
