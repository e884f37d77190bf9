"""What a person can read off the figures, asked of matplotlib."""

import numpy as np
import pytest
from PIL import Image

from flowmlx import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn, in place of files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda fig, path: figures.append(fig))
    return figures


def lines(scale, n=200):
    start = np.random.default_rng(0).normal(size=(n, 2)) * scale
    return np.stack([start + shift * np.array(scale) for shift in (0.0, 0.5, 1.0)])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (100.0, 0.01)])
def test_points_fill_the_frame_whatever_their_units(scale, drawn):
    xs = lines(scale)
    plots.trajectories(xs, xs[-1], ["a", "b"], "unused")
    drawn[0].canvas.draw()
    (axes,) = drawn[0].axes
    for limits, spread in ((axes.get_xlim(), scale[0]), (axes.get_ylim(), scale[1])):
        assert 4 < (limits[1] - limits[0]) / spread < 12
    source, sample = axes.collections[-2:]
    np.testing.assert_allclose(source.get_offsets(), xs[0])
    np.testing.assert_allclose(sample.get_offsets(), xs[-1])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")


def test_animation_has_a_frame_per_time_and_moves(tmp_path):
    xs = lines((1.0, 1.0))
    plots.animation(np.array([0, 0.5, 1]), xs, xs[-1], ["a", "b"], tmp_path / "flow.gif")
    with Image.open(tmp_path / "flow.gif") as gif:
        assert gif.n_frames == 3
        frames = []
        for k in range(3):
            gif.seek(k)
            frames.append(np.array(gif.convert("RGB")))
    assert (frames[0] != frames[2]).any()
    # The frame of the axes stays where it is: the outermost dark pixels of the middle row.
    edges = [np.flatnonzero(frame[200].mean(-1) < 60)[[0, -1]].tolist() for frame in frames]
    assert edges[0] == edges[1] == edges[2]


def test_marginals_show_data_against_samples(drawn):
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(300, 3)), rng.normal(size=(400, 3)) + 1
    plots.marginals(data, samples, ["a", "b", "c"], "unused", columns=2)
    below = drawn[0].axes[2]  # row 1, column 0 of 2 x 2
    shown = [c.get_offsets() for c in below.collections]
    assert [len(points) for points in shown] == [300, 300]
    assert shown[1].mean() - shown[0].mean() == pytest.approx(1, abs=0.2)
    assert "first 2 of 3 columns" in drawn[0].legends[0].get_title().get_text()


def test_the_loss_curve_shows_test_losses_and_marks_the_least(drawn):
    steps, losses = list(range(10, 410, 10)), np.linspace(3, 1, 40).tolist()
    plots.loss_curve(steps, losses, "unused")
    test = {"test_steps": [100, 200, 300, 400], "test_losses": [2.5, 1.25, 1.5, 6.0]}
    plots.loss_curve(steps, losses, "unused", **test)
    plain, both = (fig.axes[0] for fig in drawn)
    training, _, *tested = both.lines
    assert len(plain.lines) == 2
    np.testing.assert_array_equal(training.get_xydata(), np.stack([steps, losses], 1))
    np.testing.assert_array_equal(tested[0].get_xydata(), np.stack([*test.values()], 1))
    np.testing.assert_array_equal(tested[1].get_xydata(), [[200, 1.25]])
    assert "1.25 at step 200" in both.get_legend().get_texts()[-1].get_text()
    assert both.get_ylim()[1] > 5 > 4 > plain.get_ylim()[1]
