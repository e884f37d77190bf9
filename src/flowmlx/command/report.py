"""What the command prints of its results: rows of a name and a sentence."""

from collections.abc import Sequence
from pathlib import Path

from flowmlx.experiment.folder import Run
from flowmlx.spaces.ends import SOURCE_DENSITIES


def said(error: Exception) -> str:
    """The words of an error, for people."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"this machine has not the memory for it ({error}); take less at a time"
    return str(error)


def trained(run: Run, results: dict, figures: Sequence[Path]) -> None:
    """Print what a training took and came to."""
    rows = {"run": str(run.folder)}
    if "trained_steps" in results:
        seconds, steps = results["training_seconds"], results["trained_steps"]
        rows["training"] = (
            f"{steps:,} steps in {seconds:.1f} s ({(steps - 1) / seconds:,.0f} steps/s), after "
            f"{results['compile_seconds']:.1f} s of compiling"
        )
    if "best_step" in results:
        rows["best"] = (
            f"step {results['best_step']:,}, by the loss on held-out rows; its weights sample"
        )
    rows |= distance_rows(results)
    rows["figures"] = "  ".join(path.name for path in figures)
    print_rows(rows)


def likelihood_row(scored: dict) -> str:
    """The likelihood of held-out rows, in a sentence."""
    if not scored:
        known = " or ".join(SOURCE_DENSITIES)
        return f"none: where the flow starts has no density with a formula, as {known} have"
    error = scored["nll_standard_error"]
    return (
        f"{scored['nll']:.4f}"
        + (f" +- {error:.4f}" if error is not None else "")
        + f" nats per row over {scored['nll_rows']:,} held-out rows"
        + f"; {scored['nll_original_units']:.4f} in the original units"
    )


def distance_rows(results: dict) -> dict[str, str]:
    """Distances to held-out data, in sentences."""
    rows = {
        "sampling": f"{results['samples']:,} points at {results['times']} times in "
        f"{results['sampling_seconds']:.2f} s, {results['nfe']} field evaluations",
        "W2": f"{results['w2']:.4f} from samples to held-out data, {results['w2_floor']:.4f} from "
        f"data to held-out data ({results['w2_points']:,} points)",
        "energy distance": f"{results['energy_distance']:.5f} and "
        f"{results['energy_distance_floor']:.5f} in the same order",
    }
    for arrival in results.get("snapshots", ()):
        kind = "left out" if arrival["left_out"] else "held-out rows"
        rows[f"time {arrival['time']:g}"] = (
            f"W1 {arrival['w1']:.4f}, W2 {arrival['w2']:.4f} to {kind}, carried from time "
            f"{arrival['start']:g}; without moving {arrival['w1_before']:.4f} and "
            f"{arrival['w2_before']:.4f} ({arrival['points']:,} points)"
        )
    ours, floor = results["column_w1"], results["column_w1_floor"]
    if len(ours) > 2:
        mean, floor_mean = (sum(w.values()) / len(w) for w in (ours, floor))
        worst = max(ours, key=lambda name: ours[name])
        rows["column W1"] = (
            f"{mean:.4f} and {floor_mean:.4f} on average, worst {ours[worst]:.4f} ({worst}), "
            "in standard deviations"
        )
    return rows


def print_rows(rows: dict[str, str]) -> None:
    """Print rows of a name and a sentence, in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
