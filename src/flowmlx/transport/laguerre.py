"""Whose Laguerre cell a point is in: the j of the largest score slopes_j . x + offsets_j.

The cells of the largest of N affine functions are convex, and hold few neighbours each where space
has few dimensions. A grid over a box keeps, for each of its cells, the functions that are the
largest somewhere in it; a look-up compares only those. As the difference of two affine functions
is affine, a function that stays below the best one of the cell's centre in all corners is out.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowmlx.transport.products import products

# Cells of the grid for each function, and at most: in the plane some three candidates where points
# are. More make a look-up no faster, and the grid larger.
CELLS, MOST_CELLS = 64, 2**22


class Affine(NamedTuple):
    """Functions slopes_j . x + offsets_j: slopes (N, d), offsets (N,)."""

    slopes: np.ndarray
    offsets: np.ndarray

    def largest(self, x: np.ndarray) -> np.ndarray:
        """Index (n,) of the largest function at each of `x` (n, d), by comparing all."""
        return (products(x, self.slopes) + self.offsets).argmax(1)


@dataclass(frozen=True)
class Grid:
    """The functions that can be the largest in the cells of a grid, as one list.

    Each axis has `blocks` blocks of `blocks` cells. Cell k, counted block by block, has the
    candidates `candidates[starts[k]:starts[k + 1]]`; k is a sum of one number for each axis, that
    in `numbers` (d, blocks^2) at the place on the axis.
    """

    functions: Affine
    low: np.ndarray
    width: np.ndarray
    blocks: int
    numbers: np.ndarray
    starts: np.ndarray
    candidates: np.ndarray

    def largest(self, x: np.ndarray) -> np.ndarray:
        """Index (n,) of the largest function at each of `x` (n, d), in the box or not."""
        place = np.floor((x - self.low) / self.width)
        if len(x) and place.min() >= 0 and place.max() < self.blocks**2:  # nearly always
            return self._compare(x, place.astype(np.int64))
        inside = ((place >= 0) & (place < self.blocks**2)).all(1)
        found = np.empty(len(x), np.int64)
        found[~inside] = self.functions.largest(x[~inside])
        if inside.any():
            found[inside] = self._compare(x[inside], place[inside].astype(np.int64))
        return found

    def _compare(self, x: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Best candidate of each point's cell; the points' lists stand one behind the other."""
        # `take` gathers in two thirds of the time of an index in brackets.
        cell = sum(number.take(k) for number, k in zip(self.numbers, place.T, strict=True))
        first = self.starts.take(cell)
        counts = self.starts.take(cell + 1) - first
        begins = np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(x)), counts)
        at = (first - begins).take(row)
        at += np.arange(len(at))
        candidate = self.candidates.take(at)
        score = self.functions.offsets.take(candidate)
        # Column by column: a product of many short rows costs more.
        for slope, column in zip(self.functions.slopes.T, x.T, strict=True):
            score += slope.take(candidate) * column.take(row)
        best = np.maximum.reduceat(score, begins)
        hits = np.flatnonzero(score == best.take(row))
        if len(hits) > len(x):  # of equal ones the first
            hits = hits[np.searchsorted(hits, begins)]
        return candidate.take(hits)


def grid(functions: Affine, low: np.ndarray, high: np.ndarray) -> Grid:
    """Make the grid of `functions` over the box from `low` (d,) to `high` (d,)."""
    dim = len(low)
    cells = min(CELLS * len(functions.offsets), MOST_CELLS)
    blocks = int(np.ceil(cells ** (0.5 / dim)))
    width = np.where(high > low, high - low, 1) / blocks**2
    inner = np.stack(np.meshgrid(*[np.arange(blocks)] * dim, indexing="ij"), -1).reshape(-1, dim)
    counts, candidates = [], []
    for block in inner:
        corner = low + block * blocks * width
        centre = corner + blocks * width / 2
        some = np.flatnonzero(_can_be_largest(functions, centre[None], blocks * width / 2)[0])
        fewer = Affine(functions.slopes[some], functions.offsets[some])
        cell, which = np.nonzero(_can_be_largest(fewer, corner + (inner + 0.5) * width, width / 2))
        counts.append(np.bincount(cell, minlength=len(inner)))
        candidates.append(some[which])
    starts = np.append(0, np.cumsum(np.concatenate(counts)))
    numbers, candidate = _numbers(dim, blocks), np.concatenate(candidates)
    columns = Affine(np.asfortranarray(functions.slopes), functions.offsets)
    return Grid(columns, low, width, blocks, numbers, starts, candidate)


def _numbers(dim: int, blocks: int) -> np.ndarray:
    """What each place on each axis adds to the number of a cell, (dim, blocks^2)."""
    block, cell = np.divmod(np.arange(blocks**2), blocks)
    axis = np.arange(dim)[::-1, None]
    return block * blocks ** (dim + axis) + cell * blocks**axis


def _can_be_largest(functions: Affine, centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Whether each function may be the largest in the boxes centres +- half: (boxes, N)."""
    scores = centres @ functions.slopes.T + functions.offsets
    best = scores.argmax(1)
    lead = scores[np.arange(len(scores)), best][:, None] - scores
    for slope, h in zip(functions.slopes.T, half, strict=True):
        lead -= h * np.abs(slope - slope[best][:, None])
    return lead <= 1e-9 * np.abs(scores).max()  # rounding may not shut one out
