"""A fast BLAS for MLX: the right results, from the right library, whatever the surroundings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import scipy

from flowmlx.cpu import blas, blocks

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels need a BLAS")
DTYPES = {"float32": np.float32, "float64": np.float64, "complex64": np.complex64}
MLX_DTYPES = {"float32": mx.float32, "float64": mx.float64, "complex64": mx.complex64}
LAYOUTS = {
    "plain": lambda a: a,
    "transposed": lambda a: a.T,
    "column slice": lambda a: a[:, 3:],
    "row steps": lambda a: a[::2],
    "column steps": lambda a: a[:, ::2],
    "transposed slice": lambda a: a[2:, 5:].T,
}


@pytest.fixture(autouse=True)
def fast_blas_on_cpu():
    blas.load()
    with mx.stream(mx.cpu):
        yield


def numbers(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    return (x + 1j * rng.normal(size=shape) if dtype == "complex64" else x).astype(DTYPES[dtype])


def to_mlx(x):
    return mx.array(x, dtype=MLX_DTYPES[x.dtype.name])


def fits(a, b):
    """The largest parts of two matrices that can be multiplied, for NumPy and MLX alike."""
    k = min(a.shape[-1], b.shape[-2])
    return a[..., :k] @ b[..., :k, :]


@linux
def test_the_tests_below_run_on_openblas():
    found = blas.status()
    assert "OpenBLAS" in found.name
    assert "scipy_openblas32" in found.path
    assert found.note == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left", LAYOUTS)
def test_products_agree_with_numpy(left, dtype):
    a, b = numbers(0, (33, 47), dtype), numbers(1, (47, 29), dtype)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    for right in LAYOUTS.values():
        expected = fits(LAYOUTS[left](a), right(b))
        found = fits(LAYOUTS[left](to_mlx(a)), right(to_mlx(b)))
        np.testing.assert_allclose(np.array(found), expected, rtol=tolerance, atol=tolerance)


def test_batches_and_vectors_agree_with_numpy():
    for shapes in (((5, 7, 4), (5, 4, 3)), ((5, 7, 4), (4, 3)), ((4,), (4, 3))):
        a, b = (numbers(seed, shape, "float32") for seed, shape in enumerate(shapes))
        np.testing.assert_allclose(np.array(mx.array(a) @ mx.array(b)), a @ b, rtol=1e-5, atol=1e-5)


def test_added_products_agree_with_numpy():
    a, b, c = (numbers(k, shape, "float32") for k, shape in enumerate([(9, 6), (6, 4), (4,)]))
    found = mx.addmm(mx.array(c), mx.array(a), mx.array(b), alpha=0.5, beta=2.0)
    np.testing.assert_allclose(np.array(found), 0.5 * a @ b + 2 * c, rtol=1e-5, atol=1e-5)


def symmetric(a):
    return a @ a.T + 5 * mx.eye(a.shape[0], dtype=a.dtype)


def relative_error(found, expected):
    scale = np.abs(np.array(expected)).max()
    return np.abs(np.array(found) - np.array(expected)).max() / scale


def svd(a):
    u, s, vt = mx.linalg.svd(a)
    return (u * s) @ vt, a


def eigh(a):
    values, vectors = mx.linalg.eigh(symmetric(a))
    return (vectors * values) @ vectors.T, symmetric(a)


def eig(a):
    values, vectors = mx.linalg.eig(a)
    return vectors * values, a.astype(mx.complex64) @ vectors


def qr(a):
    q, r = mx.linalg.qr(a)
    return q @ r, a


def lu(a):
    p, lower, upper = mx.linalg.lu(a)
    return (lower @ upper)[p], a


def cholesky(a):
    factor = mx.linalg.cholesky(symmetric(a))
    return factor @ factor.T, symmetric(a)


def inv(a):
    return mx.linalg.inv(symmetric(a)) @ symmetric(a), mx.eye(a.shape[0], dtype=a.dtype)


def tri_inv(a):
    return mx.linalg.tri_inv(mx.tril(symmetric(a))) @ mx.tril(symmetric(a)), mx.eye(a.shape[0])


def solve(a):
    return symmetric(a) @ mx.linalg.solve(symmetric(a), a), a


@pytest.mark.parametrize("problem", [svd, eigh, eig, qr, lu, cholesky, inv, tri_inv, solve])
def test_factorisations_multiply_back(problem):
    for dtype in (mx.float32, mx.float64):
        a = mx.array(np.random.default_rng(0).normal(size=(40, 40))).astype(dtype)
        exact = dtype == mx.float64 and problem is not eig  # complex results are complex64
        assert relative_error(*problem(a)) < (1e-11 if exact else 1e-4)


# --- in processes of their own ---

REPORT = """
import dataclasses, json
import mlx.core as mx
a = mx.random.normal((64, 64), key=mx.random.key(0))
error = mx.max(mx.abs(a @ a - (a[:, :, None] * a[None]).sum(1))).item()
print(json.dumps({**dataclasses.asdict(blas.status()), "error": error}))
"""
LOAD = "from flowmlx.cpu import blas\nblas.load()\n"


def report(code, **environment):
    """What `blas.status` says after `code`, in a fresh Python; anything else printed fails."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        env={**os.environ, "FLOWMLX_BLAS": "", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["error"] < 1e-4
    return found


@linux
def test_a_product_may_come_first_and_no_compiler_is_needed():
    before = """
import mlx.core as mx, scipy.linalg
mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
"""
    found = report(before + LOAD + "blas.load()\n", PATH="")
    assert "scipy_openblas32" in found["path"]
    assert found["note"] == ""


@linux
@pytest.mark.parametrize("off", ["0", "mlx"])
def test_it_can_be_turned_off(off):
    found = report(LOAD, FLOWMLX_BLAS=off)
    assert found["name"] == "reference BLAS of the MLX wheel"
    assert "FLOWMLX_BLAS" in found["note"]


@linux
def test_a_path_names_the_library():
    (library,) = Path(scipy.__file__).parent.with_suffix(".libs").glob("libscipy_openblas*.so")
    found = report(LOAD, FLOWMLX_BLAS=str(library))
    assert Path(found["path"]).samefile(library)
    assert found["note"] == ""


@linux
@pytest.mark.parametrize(
    ("library", "reason"),
    [("/nowhere/libblas.so", "No such file"), ("libc.so.6", "has no function cblas_sgemm")],
)
def test_an_unusable_library_is_reported_and_does_no_harm(library, reason):
    found = report(LOAD, FLOWMLX_BLAS=library)
    assert found["name"] == "reference BLAS of the MLX wheel"
    assert f"FLOWMLX_BLAS={library}" in found["note"]
    assert reason in found["note"]


@linux
def test_a_missing_package_is_reported_and_does_no_harm():
    found = report(
        "from flowmlx.cpu import blas\nfrom flowmlx.native import elf\n"
        "find = elf.find_spec\n"
        "elf.find_spec = lambda name: None if name == 'scipy_openblas32' else find(name)\n"
        "blas.load()\n"
    )
    assert "scipy-openblas32" in found["note"]


@linux
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("how", ["LD_PRELOAD", "RTLD_GLOBAL"])
def test_a_blas_that_the_user_set_up_is_kept(how, tmp_path):
    source, library = tmp_path / "own.c", tmp_path / "libown.so"
    source.write_text("""
        void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha,
            const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
            for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) {
                float s = 0;
                for (int l = 0; l < k; l++) s += a[i * lda + l] * b[l * ldb + j];
                c[i * ldc + j] = alpha * s;
            }
        }""")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    if how == "LD_PRELOAD":
        found = report(LOAD, LD_PRELOAD=str(library))
    else:
        found = report(f"import ctypes\nctypes.CDLL({str(library)!r}, ctypes.RTLD_GLOBAL)\n" + LOAD)
    assert Path(found["path"]).samefile(library)
    assert found["note"] == ""


CORES, PROCESSORS = (
    (blocks.cores(), len(os.sched_getaffinity(0))) if sys.platform == "linux" else (1, 1)
)
THREADS = """
import ctypes
from flowmlx.cpu import blocks
library = ctypes.CDLL(blas.status().path)
print(library.scipy_openblas_get_num_threads(), blocks.threads())
"""


@linux
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, CORES if CORES > 1 and shutil.which("cc") else 0)),
        ({"PATH": ""}, (max(1, PROCESSORS // 2), 0)),
        ({"OPENBLAS_NUM_THREADS": "2"}, (2, 0)),
        ({"OMP_NUM_THREADS": "2"}, (2, 0)),
    ],
    ids=["blocks on all cores", "no compiler: half", "two", "two by OpenMP's name"],
)
def test_threads_are_those_that_the_machine_has_or_the_user_says(environment, expected):
    unset = {
        k: v for k, v in os.environ.items() if k not in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD + THREADS],
        env={**unset, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(number) for number in expected], done.stderr
