"""Shared by all tests."""

import mlx.core as mx
import pytest

from flowmlx import plots
from flowmlx.solvers import backend

backend.ready()  # before all tests, so that no result depends on which comes first


@pytest.fixture
def key():
    return mx.random.key(0)


@pytest.fixture(autouse=True)
def same_device_afterwards():
    """Undo a change of the default device, as `flowmlx --cpu` makes."""
    device = mx.default_device()
    yield
    mx.set_default_device(device)


@pytest.fixture
def without_compile():
    """Run uncompiled: on the CPU each fused kernel costs a second of C++ compilation."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_figures(monkeypatch):
    """Draw nothing at the end of a run: figures take ten times as long as a short run itself."""
    for name in ("animation", "trajectories", "marginals", "loss_curve"):
        monkeypatch.setattr(plots, name, lambda *arguments, **options: None)
