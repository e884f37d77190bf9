"""What users hand over, as the arrays, keys and numbers that the library works with.

One rule for every public function: what has one meaning is converted, all else is refused in a
sentence that names the argument, says what came and what is expected. Lists, NumPy arrays,
integers and whatever else NumPy reads become arrays; float64 of NumPy becomes float32, as in MLX,
but where a function works in float64. A float of another size stays what it is. Complex numbers,
text and None are refused: TypeError for a type, ValueError for a shape or a value.

Only types and shapes of an `mx.array` are looked at, so that a check waits for no device and
functions can be traced; values are checked where they are numbers on the host.

The first array or key that is handed over is the first use of the package, when MLX's backend is
made ready (`backend`).
"""

import functools
import inspect
import math
import numbers
import operator
import reprlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers import backend
from flowmlx.solvers.tracing import on_host

# Kinds of NumPy's dtypes that are real numbers: bool, int, unsigned, float.
REAL_KINDS = "biuf"
# Entries of an axis of an mx.array.
LONGEST = 2**31 - 1


def as_array(value: Any, name: str, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Floating-point numbers; those that come without a size of MLX's own get `dtype`."""
    if dtype == mx.float64 and not isinstance(value, mx.array):
        # By way of Python's numbers: from float64 of NumPy MLX makes float32.
        return mx.array(as_numpy(value, name, np.float64).tolist(), dtype=dtype)
    array = as_real(value, name)
    return array if mx.issubdtype(array.dtype, mx.floating) else array.astype(dtype)


def as_real(value: Any, name: str) -> mx.array:
    """Real numbers of any kind: integers and bools stay what they are, such as labels."""
    backend.ready()
    if isinstance(value, mx.array):
        return _real(value, name)
    if _holds_arrays(value):
        parts = [as_real(part, name) for part in value]
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(part.shape) for part in parts[:4])
            raise ValueError(f"{name} holds arrays of shapes {shapes}; expected one shape for all")
        return mx.stack(parts)
    return mx.array(_fitting(as_numpy(value, name), name))


def as_batch(value: Any, name: str) -> mx.array:
    """Floating-point numbers (batch, ...), of any number of samples."""
    array = as_array(value, name)
    if array.ndim == 0:
        raise ValueError(f"{name} has shape (); expected (batch, ...), one row for each sample")
    return array


def as_tree(tree: Any, name: str) -> Any:
    """A tree (dict, list, tuple, NamedTuple) of floating-point arrays, or one array.

    A list or tuple of numbers alone, nested or not, is one array.
    """
    leaves: Any = tree_flatten(tree)
    if not leaves:
        raise TypeError(f"{name} is {describe(tree)}; expected an array, or a tree of arrays")
    plain = isinstance(tree, list | tuple) and not hasattr(tree, "_fields")
    if plain and all(isinstance(leaf, numbers.Real) for _, leaf in leaves):
        return as_array(tree, name)
    return tree_map(lambda leaf: as_array(leaf, name), tree)


def as_numpy(value: Any, name: str = "the array", dtype: Any = None) -> np.ndarray:
    """Real numbers on the host, of `dtype` if given: the one way from MLX to NumPy.

    bfloat16, which NumPy does not have, becomes float32. Shares memory where it can: copy before
    writing. Raises ValueError as well where `value` is traced by `mx.compile` or `mx.vmap`.
    """
    backend.ready()
    if isinstance(value, mx.array) or _holds_arrays(value):
        array = as_real(value, name)
        if array.dtype == mx.bfloat16:
            array = array.astype(mx.float32)
        return np.asarray(_evaluated(lambda: np.asarray(array), name), dtype)
    if np.ma.is_masked(value):
        raise ValueError(f"{name} is a masked array with gaps; expected numbers: fill or drop them")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} is {describe(value)}; expected an array of numbers, with rows of one length"
        ) from error
    if array.dtype.kind == "c":
        raise _complex(name)
    if array.dtype.kind in "US" and array.ndim:
        raise TypeError(
            f"{name} is {describe(value)}; expected numbers, or integers for labels, such as "
            f"np.unique({name}, return_inverse=True)[1]"
        )
    if array.dtype.kind not in REAL_KINDS:
        raise TypeError(f"{name} is {describe(value)}; expected numbers, such as an mx.array")
    return np.asarray(array, dtype)


def as_rows(value: Any, name: str, dtype: Any = None) -> np.ndarray:
    """As `as_numpy`, (rows, ...), with one row at least: for what compares, pairs or averages."""
    rows = as_numpy(value, name, dtype)
    check_rows(rows, name)
    return rows


def as_points(value: Any, name: str) -> mx.array | np.ndarray:
    """Real numbers (rows, ...) with one row at least, where they are: MLX's on the device."""
    points = as_real(value, name) if isinstance(value, mx.array) else as_numpy(value, name)
    check_rows(points, name)
    return points


def check_rows(array: mx.array | np.ndarray, name: str) -> None:
    """Refuse an array without rows where nothing follows from none."""
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; expected (n, ...) with at least one sample"
        )


def check_key(key: Any, name: str = "key") -> mx.array:
    """A random key; one of NumPy is converted."""
    backend.ready()
    if isinstance(key, np.ndarray) and key.dtype == np.uint32:
        key = mx.array(key)
    if isinstance(key, mx.array) and key.dtype == mx.uint32 and key.shape == (2,):
        return key
    seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
    raise TypeError(
        f"{name} is {describe(key)}; expected a random key: write {name}=mx.random.key({seed})"
    )


def check_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least` that an axis can have, also one of NumPy or MLX."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        count = None
    if count is None or not least <= count <= LONGEST:
        kind = ValueError if isinstance(value, numbers.Real) else TypeError
        bounds = f">= {least}" if count is None or count < least else f"<= {LONGEST}"
        raise kind(f"{name} is {describe(value)}; expected an integer {bounds}")
    return count


def check_number(
    value: Any, name: str, expected: str, holds: Callable[[float], bool] = math.isfinite
) -> float:
    """A number for which `holds` is true, in words `expected`; also one of NumPy or MLX."""
    number = _number(value, name)
    if number is None or not holds(number):
        kind = TypeError if number is None else ValueError
        raise kind(f"{name} is {describe(value)}; expected {expected}")
    return number


def as_number(
    value: Any, name: str, expected: str, holds: Callable[[float], bool] = math.isfinite
) -> Any:
    """As `check_number`, but one of MLX stays what it is: gradients go through it."""
    number = check_number(value, name, expected, holds)
    return value if isinstance(value, mx.array) else number


def check_callable(value: Any, name: str, call: str) -> None:
    """Refuse what is no function; `call` says how it will be called."""
    if not callable(value):
        raise TypeError(f"{name} is {describe(value)}; expected a function {call}")


def check_returned(value: Any, call: str, shape: tuple[int, ...] | None = None) -> mx.array:
    """What a user's function returned, real numbers of MLX; of `shape` if given."""
    if not isinstance(value, mx.array):
        raise TypeError(
            f"{call} returned {describe(value)}; expected an mx.array, made by operations of MLX"
        )
    if mx.issubdtype(value.dtype, mx.complexfloating):
        raise TypeError(f"{call} returned complex numbers; expected real ones")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{call} returned shape {value.shape}; expected {shape}")
    return value


def draws(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Decorate a function `(n, *, key, ...) -> (n, ...)` so that it checks what it is given.

    A parameter whose default is a number must be one, and one whose default is an integer a count.
    """
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}

    def parameter(value: Any, name: str) -> Any:
        kind = type(defaults.get(name))
        if kind is int:
            return check_count(value, name)
        return as_number(value, name, "a number") if kind is float else value

    @functools.wraps(function)
    def checked(n: int, *, key: mx.array, **parameters: Any) -> mx.array:
        parameters = {name: parameter(value, name) for name, value in parameters.items()}
        return function(check_count(n, "n", least=0), key=check_key(key), **parameters)

    return checked


def samplewise(x: mx.array) -> mx.array:
    """(batch, ...) -> (batch, n), also where one of the axes is empty."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def entry(xs: mx.array, k: int) -> mx.array:
    """xs[k]; where there are no numbers, MLX's own gradient of that ends the process."""
    return mx.squeeze(xs[k:][:1], axis=0)


def describe(value: Any) -> str:
    """What came, in a few words."""
    if isinstance(value, mx.array):
        return f"an mx.array of {dtype_name(value.dtype)} {value.shape}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {value.dtype} {value.shape}"
    if value is None or isinstance(value, bool | str | numbers.Number | list | tuple | dict):
        return reprlib.repr(value.item() if isinstance(value, np.generic) else value)
    return f"of type {type(value).__name__}"


def dtype_name(dtype: mx.Dtype) -> str:
    """The name of a dtype without its module."""
    return str(dtype).rpartition(".")[2]


def _holds_arrays(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(part, mx.array) or _holds_arrays(part) for part in value)


def _real(array: mx.array, name: str) -> mx.array:
    if mx.issubdtype(array.dtype, mx.complexfloating):
        raise _complex(name)
    return array


def _complex(name: str) -> TypeError:
    return TypeError(
        f"{name} holds complex numbers; expected real ones: give the real and imaginary part as "
        "two columns"
    )


def _fitting(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers that MLX takes, refused where they are too large for float32."""
    if array.dtype.kind != "f" or array.dtype.itemsize < 8:
        return array
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    large = np.isinf(single) & np.isfinite(array)
    if large.any():
        raise ValueError(f"{name} holds {array[large][0]:g}; expected numbers that fit float32")
    return single


def _number(value: Any, name: str) -> float | None:
    """The number that a value is, None for what is none."""
    if isinstance(value, mx.array) and value.ndim == 0 and value.dtype != mx.complex64:
        return _evaluated(lambda: float(value), name)
    scalar = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in REAL_KINDS
    if not (isinstance(value, numbers.Real) or scalar):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _evaluated(read: Callable[[], Any], name: str) -> Any:
    try:
        return on_host(read)
    except ValueError as error:
        raise ValueError(
            f"{name} is traced by mx.compile or mx.vmap, and its numbers are needed on the host; "
            "call this outside of the traced function"
        ) from error
