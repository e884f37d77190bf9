"""Methods as data: exact numbers, checked when the table is built."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

Row = tuple[Fraction, ...]

# A table given in decimals meets its own identities only to the digits that were published.
TOLERANCE = Fraction(1, 10**14)


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method with s stages.

    k_i = v(t + c_i h, x + h sum_j a_ij k_j) and x_next = x + h sum_i b_i k_i.

    `order`: of the propagated solution. `c`, `b`: s numbers; `a`: the rows below the diagonal, the
    first empty. `error`: weights of the error estimate (b minus the embedded b), or None for a
    method without one; `error_order`: order of the embedded solution. `dense`: row i holds the
    coefficients of theta, theta^2, ... of the weight b_i(theta) in
    x(t + theta h) = x + h sum_i b_i(theta) k_i, of order `dense_order`; None means cubic Hermite
    interpolation.
    Raises ValueError if the numbers contradict each other.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row | None = None
    error_order: int = 0
    dense: tuple[Row, ...] | None = None
    dense_order: int = 3

    def __post_init__(self):
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True)):
            if len(row) != i:
                raise ValueError(f"row {i} of a has {len(row)} entries; expected {i}")
            _check(f"sum of row {i} of a", sum(row), node)
        _check("sum of b", sum(self.b), 1)
        if self.error is not None:
            _check("sum of the error weights", sum(self.error), 0)
        for i, row in enumerate(self.dense or ()):
            _check(f"dense weight {i} at theta = 1", sum(row), self.b[i])

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.c)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end of the step (first same as last)."""
        return self.c[-1] == 1 and (*self.a[-1], Fraction(0)) == self.b

    @cached_property
    def numbers(self) -> "Numbers":
        """The table in floating point, arranged for a step."""
        rows = [
            *self.a[1:],
            *([] if self.fsal else [self.b]),
            *([self.error] if self.error else []),
        ]
        matrix = np.array([[*row, *[0] * (self.stages - len(row))] for row in rows], dtype=float)
        return Numbers(
            c=tuple(map(float, self.c)),
            matrix=matrix,
            dense=None if self.dense is None else np.array(self.dense, dtype=float),
        )


@dataclass(frozen=True)
class Numbers:
    """A tableau in floating point.

    `matrix[i, j]`: weight of k_j in stage i + 1; the rows after the stages are x_next (where that
    is not the last stage) and the error estimate (where there is one). `dense`: as in the tableau.
    """

    c: tuple[float, ...]
    matrix: np.ndarray
    dense: np.ndarray | None


@dataclass(frozen=True)
class Adams:
    """An Adams-Bashforth method through the last `order` slopes, for steps of any length.

    `corrector`: whether the trapezoidal rule corrects it, at a second evaluation per step; the
    order is then 2 and so is `order`.
    """

    order: int
    corrector: bool = False


def _check(name: str, value: Fraction | int, expected: Fraction | int) -> None:
    if abs(value - expected) > TOLERANCE:
        raise ValueError(f"{name} is {float(value)}; expected {float(expected)}")


def _row(text: str) -> Row:
    """Numbers separated by blanks, each an integer, a fraction or a decimal, read exactly."""
    return tuple(map(Fraction, text.split()))


def _rows(*texts: str) -> tuple[Row, ...]:
    return tuple(map(_row, texts))


def _minus(b: Row, embedded: Row) -> Row:
    return tuple(p - q for p, q in zip(b, embedded, strict=True))


def _product(*factors: str) -> Row:
    """Coefficients of theta, theta^2, ... of a product of polynomials without constant term.

    Each factor lists its coefficients from the constant upwards.
    """
    result = [Fraction(1)]
    for factor in map(_row, factors):
        longer = [Fraction(0)] * (len(result) + len(factor) - 1)
        for i, p in enumerate(result):
            for j, q in enumerate(factor):
                longer[i + j] += p * q
        result = longer
    return tuple(result[1:])


EULER = Tableau(order=1, c=_row("0"), a=_rows(""), b=_row("1"))

MIDPOINT = Tableau(order=2, c=_row("0 1/2"), a=_rows("", "1/2"), b=_row("0 1"))

# Heun 1900; also known as the explicit trapezoidal rule.
HEUN = Tableau(order=2, c=_row("0 1"), a=_rows("", "1"), b=_row("1/2 1/2"))

# Ralston 1962: the two-stage method with the smallest bound on the error.
RALSTON = Tableau(order=2, c=_row("0 2/3"), a=_rows("", "2/3"), b=_row("1/4 3/4"))

# Kutta 1901: the classical method and the 3/8 rule.
RK4 = Tableau(
    order=4,
    c=_row("0 1/2 1/2 1"),
    a=_rows("", "1/2", "0 1/2", "0 0 1"),
    b=_row("1/6 1/3 1/3 1/6"),
)
RK4_38 = Tableau(
    order=4,
    c=_row("0 1/3 2/3 1"),
    a=_rows("", "1/3", "-1/3 1", "1 -1 1"),
    b=_row("1/8 3/8 3/8 1/8"),
)

# Bogacki & Shampine 1989, 3(2).
_BOSH3_B = _row("2/9 1/3 4/9 0")
BOSH3 = Tableau(
    order=3,
    c=_row("0 1/2 3/4 1"),
    a=_rows("", "1/2", "0 3/4", "2/9 1/3 4/9"),
    b=_BOSH3_B,
    error=_minus(_BOSH3_B, _row("7/24 1/4 1/3 1/8")),
    error_order=2,
)

# Dormand & Prince 1980, 5(4). The embedded weights are Shampine's 1986 (torchdiffeq and diffrax use
# them too): the error estimate is 2/3 of the one in Hairer's DOPRI5 and SciPy's RK45. The quartic
# output is Shampine's as well (Hairer, Norsett & Wanner I, II.6). Inside a long step it can be far
# less accurate than at the end: off by 3e-4 for x' = sin(3 t) x at tolerance 1e-6, where the ends
# of the steps are off by 4e-6. That of TSIT5 is off by 3e-5.
_DOPRI5_B = _row("35/384 0 500/1113 125/192 -2187/6784 11/84 0")
DOPRI5 = Tableau(
    order=5,
    c=_row("0 1/5 3/10 4/5 8/9 1 1"),
    a=_rows(
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    b=_DOPRI5_B,
    error=_minus(_DOPRI5_B, _row("1951/21600 0 22642/50085 451/720 -12231/42400 649/6300 1/60")),
    error_order=4,
    dense_order=4,
    dense=_rows(
        "1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432",
        "0 0 0 0",
        "0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799",
        "0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072",
        "0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632",
        "0 -282668133/205662961 2019193451/616988883 -1453857185/822651844",
        "0 40617522/29380423 -110615467/29380423 69997945/29380423",
    ),
)

# Tsitouras 2011, 5(4), with its free quartic output; row a_7 is propagated. The paper's b-tilde is
# the error estimate itself, printed with one wrong sign (the last weight, 1/66).
TSIT5 = Tableau(
    order=5,
    c=_row("0 0.161 0.327 0.9 0.9800255409045097 1 1"),
    a=_rows(
        "",
        "0.161",
        "-0.008480655492356989 0.335480655492357",
        "2.8971530571054935 -6.359448489975075 4.3622954328695815",
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 "
        "-0.028269050394068383",
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 "
        "2.324710524099774",
    ),
    b=_row(
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 "
        "2.324710524099774 0"
    ),
    error=_row(
        "-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995 -0.1447110071732629 "
        "0.5823571654525552 -0.45808210592918697 1/66"
    ),
    error_order=4,
    dense_order=4,
    dense=(
        _product(
            "0 -1.0530884977290216",
            "-1.3299890189751412 1",
            "0.7139816917074209 -1.4364028541716351 1",
        ),
        _product("0 0 0.1017", "1.2949852507374631 -2.1966568338249754 1"),
        _product("0 0 2.490627285651252793", "1.57803468208092486 -2.38535645472061657 1"),
        _product("0 0 -16.54810288924490272", "-1.21712927295533244 1", "-0.61620406037800089 1"),
        _product("0 0 47.37952196281928122", "-1.203071208372362603 1", "-0.658047292653547382 1"),
        _product("0 0 -34.87065786149660974", "-1.2 1", "-2/3 1"),
        _product("0 0 2.5", "-1 1", "-0.6 1"),
    ),
)

AB2 = Adams(order=2)
AB3 = Adams(order=3)
# Adams-Bashforth-Moulton of order 2: predict, evaluate, correct, evaluate.
ABM2 = Adams(order=2, corrector=True)
