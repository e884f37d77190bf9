"""Shared by the tests of solvers."""

import mlx.core as mx
import pytest


@pytest.fixture(autouse=True)
def on_cpu(same_device_afterwards):
    """float64 exists on the CPU only."""
    mx.set_default_device(mx.cpu)
