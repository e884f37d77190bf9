"""Shared by all tests."""

import mlx.core as mx
import pytest


@pytest.fixture
def key():
    return mx.random.key(0)


@pytest.fixture
def without_compile():
    """Run uncompiled: on the CPU each fused kernel costs a second of C++ compilation."""
    mx.disable_compile()
    yield
    mx.enable_compile()
