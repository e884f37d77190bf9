"""The Runge-Kutta methods, in exact numbers."""

from fractions import Fraction

from flowmlx.solvers.runge_kutta import Row, Tableau


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


EULER = Tableau(name="euler", order=1, c=_row("0"), a=_rows(""), b=_row("1"))

MIDPOINT = Tableau(name="midpoint", order=2, c=_row("0 1/2"), a=_rows("", "1/2"), b=_row("0 1"))

# Heun 1900; also known as the explicit trapezoidal rule.
HEUN = Tableau(name="heun", order=2, c=_row("0 1"), a=_rows("", "1"), b=_row("1/2 1/2"))

# Ralston 1962: the two-stage method with the smallest bound on the error.
RALSTON = Tableau(name="ralston", order=2, c=_row("0 2/3"), a=_rows("", "2/3"), b=_row("1/4 3/4"))

# Kutta 1901: the classical method and the 3/8 rule.
RK4 = Tableau(
    name="rk4",
    order=4,
    c=_row("0 1/2 1/2 1"),
    a=_rows("", "1/2", "0 1/2", "0 0 1"),
    b=_row("1/6 1/3 1/3 1/6"),
)
RK4_38 = Tableau(
    name="rk4_38",
    order=4,
    c=_row("0 1/3 2/3 1"),
    a=_rows("", "1/3", "-1/3 1", "1 -1 1"),
    b=_row("1/8 3/8 3/8 1/8"),
)

# Bogacki & Shampine 1989, 3(2).
_BOSH3_B = _row("2/9 1/3 4/9 0")
BOSH3 = Tableau(
    name="bosh3",
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
    name="dopri5",
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
    name="tsit5",
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
