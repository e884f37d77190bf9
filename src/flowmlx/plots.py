"""Figures of a flow. The only module that imports matplotlib."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from PIL import Image

from flowmlx.files.writing import replacing, write_bytes

SOURCE, TARGET, LINE = "#2f6db3", "#d1495b", "#9aa0a6"


def trajectories(
    xs: np.ndarray, data: np.ndarray, names: Sequence[str], path: str | Path, *, lines: int = 512
) -> None:
    """Draw flow lines `xs` (times, n, 2) from source points to end points.

    A density of the source (`xs[0]`) and of the `data` (m, 2) lies under them; `names` are those of
    the two axes.
    """
    fig, ax = plt.subplots(figsize=(8, 8), layout="constrained")
    _frame(ax, xs, data, names)
    _density(ax, xs[0], "Blues")
    _density(ax, data, "Reds")
    shown = xs[:, :lines]
    ax.add_collection(
        LineCollection(list(shown.transpose(1, 0, 2)), colors=LINE, linewidths=0.5, alpha=0.45)
    )
    ax.scatter(*shown[0].T, s=9, c=SOURCE, linewidths=0, label="source, t = 0", zorder=3)
    ax.scatter(*shown[-1].T, s=9, c=TARGET, linewidths=0, label="sample, t = 1", zorder=3)
    ax.legend(loc="upper right", markerscale=2.5, frameon=False)
    _save(fig, path)


def animation(
    ts: np.ndarray,
    xs: np.ndarray,
    data: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    *,
    frames: int = 60,
) -> None:
    """Animate the points `xs` (times, n, 2) at `ts` over a density of the `data` (m, 2), as a GIF.

    The last frame is held for a second and a half.
    """
    fig, ax = plt.subplots(figsize=(5, 5), layout="constrained", dpi=80)
    canvas = FigureCanvasAgg(fig)
    _frame(ax, xs, data, names)
    _density(ax, data, "Reds")
    points = ax.scatter(*xs[0].T, s=6, c=SOURCE, linewidths=0, zorder=3)
    time = ax.text(0.03, 0.95, "", transform=ax.transAxes, fontsize=12)
    canvas.draw()
    fig.set_layout_engine("none")  # laid out once: frames must not shift
    images = []
    for k in np.unique(np.linspace(0, len(ts) - 1, frames).round().astype(int)):
        points.set_offsets(xs[k])
        time.set_text(f"t = {ts[k]:.2f}")
        canvas.draw()
        images.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB").quantize(64))
    plt.close(fig)
    durations = [50] * (len(images) - 1) + [1500]  # milliseconds
    gif = io.BytesIO()  # writing to a full disk itself, Pillow does not say what is wrong
    images[0].save(gif, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    write_bytes(path, gif.getvalue())


def marginals(
    data: np.ndarray,
    samples: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    *,
    columns: int = 6,
) -> None:
    """Draw the first `columns` columns of `data` and `samples` (n, d) against each other in pairs.

    Histograms on the diagonal. At most 1,000 points of each are drawn, as many of the one as of
    the other, so that neither hides the other.
    """
    d = min(columns, data.shape[1])
    count = min(1000, len(data), len(samples))
    rng = np.random.default_rng(0)
    data, samples = (x[rng.choice(len(x), count, replace=False), :d] for x in (data, samples))
    limits = [_limits(data[:, k], samples[:, k]) for k in range(d)]
    size = max(5.0, 2.1 * d)
    fig, axes = plt.subplots(d, d, figsize=(size, size), squeeze=False, layout="constrained")
    for row in range(d):
        for column in range(d):
            ax = axes[row, column]
            ax.tick_params(labelsize=7)
            ax.locator_params(nbins=4)
            if column > row:
                ax.axis("off")
                continue
            ax.set_xlim(limits[column])
            if row == column:
                bins = np.linspace(*limits[row], 31)
                for x, colour in ((data, SOURCE), (samples, TARGET)):
                    ax.hist(x[:, row], bins, density=True, histtype="step", color=colour)
                ax.set_yticks([])
            else:
                ax.set_ylim(limits[row])
                for x, colour in ((data, SOURCE), (samples, TARGET)):
                    ax.scatter(x[:, column], x[:, row], s=5, c=colour, alpha=0.35, linewidths=0)
            if row == d - 1:
                ax.set_xlabel(_shorten(names[column]), fontsize=8)
            if column == 0 and row > 0:
                ax.set_ylabel(_shorten(names[row]), fontsize=8)
    handles = [
        Line2D([], [], color=SOURCE, marker="o", linewidth=1, label="data"),
        Line2D([], [], color=TARGET, marker="o", linewidth=1, label="samples"),
    ]
    title = f"first {d} of {len(names)} columns" if d < len(names) else None
    fig.legend(handles=handles, title=title, loc="upper right", frameon=False)
    _save(fig, path)


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    path: str | Path,
    *,
    test_steps: Sequence[int] = (),
    test_losses: Sequence[float] = (),
) -> None:
    """Draw the loss at each logged step, with a running mean over a twentieth of them.

    And the test losses at their steps, if there are some, with a mark at the least.
    """
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot(steps, losses, color=LINE, linewidth=0.8, label="training loss")
    window = len(losses) // 20
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        middles = steps[window // 2 : window // 2 + len(smooth)]
        ax.plot(middles, smooth, color=TARGET, label=f"running mean of {window}")
    if len(test_losses):
        least = int(np.argmin(test_losses))
        ax.plot(
            test_steps,
            test_losses,
            color=SOURCE,
            linewidth=1.2,
            label="test loss, averaged weights",
        )
        ax.plot(
            test_steps[least], test_losses[least], "o", color=SOURCE, markersize=5, zorder=3,
            label=f"least, {test_losses[least]:.4g} at step {test_steps[least]:,}",
        )  # fmt: skip
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    # The first steps fall from a height that would flatten the rest.
    shown = [curve for curve in (losses, test_losses) if len(curve)]
    low = min(np.percentile(curve, 0) for curve in shown)
    high = max(np.percentile(curve, 98) for curve in shown)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1
    ax.set_ylim(low - margin, high + margin)
    ax.legend(frameon=False)
    _save(fig, path)


def comparison(
    ours: Mapping[str, Mapping[str, tuple[float, float]]],
    published: Mapping[str, Mapping[str, tuple[float, ...]]],
    floors: Mapping[str, float],
    path: str | Path,
) -> None:
    """Draw means and standard deviations of W2 by problem and method, beside published ones.

    `floors`: of each problem, a line that no W2 can be expected to be below.
    """
    fig, axes = plt.subplots(
        1, len(ours), figsize=(3 * len(ours), 4), squeeze=False, layout="constrained"
    )
    for ax, (problem, entries) in zip(axes[0], ours.items(), strict=True):
        theirs = published.get(problem, {})
        for x, (method, (mean, std)) in enumerate(entries.items()):
            ax.errorbar(x - 0.12, mean, std, fmt="o", color=TARGET, capsize=3)
            if method in theirs:
                ax.errorbar(x + 0.12, *theirs[method], fmt="o", color=SOURCE, capsize=3, mfc="w")
        ax.axhline(floors[problem], color=LINE, linestyle="--", linewidth=1)
        ax.set_xticks(range(len(entries)), [*entries], rotation=60, ha="right", fontsize=8)
        ax.set_ylim(bottom=0)
        ax.set_title(problem, fontsize=10)
    axes[0, 0].set_ylabel("W2 to new points")
    handles = [
        Line2D([], [], color=TARGET, marker="o", linewidth=0, label="flowmlx"),
        Line2D([], [], color=SOURCE, marker="o", linewidth=0, mfc="w", label="published"),
        Line2D([], [], color=LINE, linestyle="--", label="data to data"),
    ]
    axes[0, 0].legend(handles=handles, frameon=False, fontsize=8, loc="lower left")
    _save(fig, path)


def flow_grid(
    rows: Sequence[str],
    columns: Sequence[str],
    lines: Mapping[tuple[str, str], np.ndarray],
    path: str | Path,
) -> None:
    """Draw flow lines (times, n, 2) by row and column; a pair without lines stays empty."""
    size = 2.2
    fig, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(size * len(columns), size * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            ax, xs = axes[i, j], lines.get((row, column))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_box_aspect(1)
            if i == 0:
                ax.set_title(column, fontsize=9)
            if j == 0:
                ax.set_ylabel(row, fontsize=9)
            if xs is None:
                for side in ax.spines.values():
                    side.set_visible(False)
                continue
            ax.add_collection(
                LineCollection(list(xs.transpose(1, 0, 2)), colors=LINE, linewidths=0.4, alpha=0.6)
            )
            ax.scatter(*xs[0].T, s=3, c=SOURCE, linewidths=0, zorder=3)
            ax.scatter(*xs[-1].T, s=3, c=TARGET, linewidths=0, zorder=3)
            ax.set_aspect("equal", adjustable="datalim")
            ax.autoscale_view()
    _save(fig, path)


def _frame(ax, xs, data, names):
    """Square axes around the source, the data and where the lines end, without far outliers.

    One unit is as long on both axes unless their ranges differ more than threefold, as those of
    two quantities may.
    """
    points = np.concatenate([xs[0], xs[-1], data])
    low, high = np.percentile(points, [0.2, 99.8], axis=0)
    centre, reach = (low + high) / 2, 0.58 * (high - low)
    reach[reach == 0] = 1.0
    if reach.max() < 3 * reach.min():
        reach[:] = reach.max()
    ax.set_xlim(centre[0] - reach[0], centre[0] + reach[0])
    ax.set_ylim(centre[1] - reach[1], centre[1] + reach[1])
    ax.set_box_aspect(1)
    ax.set_xlabel(_shorten(names[0]))
    ax.set_ylabel(_shorten(names[1]))


def _density(ax, points, colours):
    """Shade a smoothed histogram of the points inside the axes."""
    from scipy.ndimage import gaussian_filter

    extent = [*ax.get_xlim(), *ax.get_ylim()]
    counts, _, _ = np.histogram2d(*points.T, bins=120, range=[extent[:2], extent[2:]])
    smooth = gaussian_filter(counts.T, 2.0)
    top = np.percentile(smooth[smooth > 0], 99) if (smooth > 0).any() else 1.0
    shade = np.ma.masked_less(smooth, 0.04 * top)
    ax.imshow(
        shade, extent=extent, origin="lower", cmap=colours, vmin=0, vmax=1.6 * top, alpha=0.6,
        interpolation="bilinear", zorder=0, aspect="auto",
    )  # fmt: skip


def _limits(data, samples):
    both = np.concatenate([data, samples])
    low, high = np.percentile(both, [0.5, 99.5])
    low, high = min(low, data.min()), max(high, data.max())
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _shorten(name, length=22):
    short = name if len(name) <= length else name[: length - 1] + "…"
    return short.replace("$", r"\$")  # not the start of a formula


def _save(fig, path):
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=150)
    plt.close(fig)
