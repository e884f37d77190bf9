"""Semidiscrete transport: from any source to a fixed set of rows, learned once.

A potential g_j per row is learned such that over draws x0 of the source every row is equally often
the argmax_j (g_j - |x0 - y_j|^2): that map is optimal transport to the whole data set, not to a
batch of it (Mousavi-Hosseini et al. 2025, arXiv 2509.25519). With reg > 0 a draw goes to row j with
probability proportional to b_j exp((g_j - |x0 - y_j|^2) / reg), b_j the share of equal rows.

Where the rows have conditions, x0 is given that of a row drawn at random. It meets rows of that
condition only, or pays for the difference, as in `couplings.conditional`: the source of a row then
does not depend on its condition.
"""

from flowmlx.couplings.semidiscrete.coupling import FITTED_COUPLINGS, semidiscrete
from flowmlx.couplings.semidiscrete.fit import fit_semidiscrete
from flowmlx.couplings.semidiscrete.potential import (
    FORMAT,
    Semidiscrete,
    load_semidiscrete,
    save_semidiscrete,
)

__all__ = [
    "FITTED_COUPLINGS",
    "FORMAT",
    "Semidiscrete",
    "fit_semidiscrete",
    "load_semidiscrete",
    "save_semidiscrete",
    "semidiscrete",
]
