import gzip
import json
import os
import re
import tracemalloc
import warnings

import mlx.core as mx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from flowmlx.data.arrays import (
    WRITERS,
    Standardizer,
    Table,
    by_value,
    delimited,
    open_writer,
    read,
    split,
    take_columns,
)

X = np.array([[1.5, -2.0], [3.25, 1e-7], [-0.1, 12345.678901234]])


def make(path, content):
    """Write `content` (text, bytes, an array, or a dict of arrays or columns) as path's format."""
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif path.suffix == ".parquet":
        parquet.write_table(pa.table(content), path)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)
    return path


def table(*columns):
    names = tuple(f"c{k}" for k in range(len(columns)))
    return Table(names, np.array(columns, np.float64).T)


# Reading what is right


@pytest.mark.parametrize("extension", WRITERS)
def test_round_trip_keeps_every_digit_and_the_names(tmp_path, extension):
    names = ("alcohol", 'a "quoted", name', "größe")
    rows = np.random.default_rng(0).standard_normal((500, 3)) * [1e-12, 1, 1e12]
    path = tmp_path / f"rows{extension}"
    with open_writer(path, names) as out:
        for batch in np.split(rows, [1, 120]):
            out.write(batch)
    columns, values, _ = read(path)
    assert columns == (names if extension != ".npy" else ("x0", "x1", "x2"))
    np.testing.assert_array_equal(values, rows)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1.5,-2\n3.25,1e-7\n-.1,12345.678901234\n",
        "a,b\r\n1.5,-2\r\n3.25,1e-7\r\n-.1,12345.678901234",
        "a;b\n1.5;-2\n3.25;1e-7\n-.1;12345.678901234\n",
        "a\tb\n1.5\t-2\n3.25\t1e-7\n-.1\t12345.678901234\n",
        "a|b\n1.5|-2\n3.25|1e-7\n-.1|12345.678901234\n",
        "\ufeffa,b\n1.5,-2\n3.25,1e-7\n-.1,12345.678901234\n",
        '"a","b"\n"1.5", -2\n3.25 ,"1e-7"\n\n-.1,12345.678901234\n\n',
        "\n a , b \n1.5,-2\n3.25,1e-7\n-.1,12345.678901234\n",
    ],
    ids=["plain", "crlf", "semicolon", "tab", "bar", "bom", "quotes", "blanks"],
)
def test_csv_dialects(tmp_path, text):
    columns, values, _ = read(make(tmp_path / "data.csv", text))
    assert columns == ("a", "b")
    np.testing.assert_array_equal(values, X)


def test_csv_names_may_hold_separators_and_line_breaks(tmp_path):
    path = make(tmp_path / "data.csv", '"a, b","c\nd"\n1,2\n3,4\n')
    assert read(path).columns == ("a, b", "c\nd")
    np.testing.assert_array_equal(read(path).values, [[1, 2], [3, 4]])


def test_csv_without_header_is_data_with_a_warning(tmp_path):
    path = make(tmp_path / "data.csv", "1,2\n3,4\n")
    with pytest.warns(UserWarning, match=r"data\.csv: the first line has no names.*'x0', 'x1'"):
        columns, values, _ = read(path)
    assert columns == ("x0", "x1")
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


def test_csv_columns_may_turn_from_integers_to_floats_late(tmp_path, monkeypatch):
    # Type inference from a first block of the file would fail here.
    monkeypatch.setattr(delimited, "_BLOCK", 512)
    text = "a\n" + "\n".join(map(str, range(1000))) + "\n0.5\n"
    assert read(make(tmp_path / "data.csv", text)).values[-1, 0] == 0.5


def test_csv_booleans_are_zeros_and_ones(tmp_path):
    path = make(tmp_path / "data.csv", "a,b,c\nfalse,False,2\nTRUE,true,3\n")
    assert read(path).values.tolist() == [[0, 0, 2], [1, 1, 3]]


def test_parquet_numbers_of_every_kind(tmp_path):
    from decimal import Decimal

    columns = {
        "int": pa.array([1, 2], pa.int8()),
        "big": pa.array([2**62, 2**63], pa.uint64()),
        "half": pa.array(np.array([0.5, 2], np.float16)),
        "bool": [True, False],
        "decimal": [Decimal("1.25"), Decimal("-3.50")],
    }
    names, values, _ = read(make(tmp_path / "data.parquet", columns))
    assert names == tuple(columns)
    assert values.tolist() == [[1, 2.0**62, 0.5, 1, 1.25], [2, 2.0**63, 2, 0, -3.5]]


@pytest.mark.parametrize("extension", [".npy", ".npz"])
def test_arrays_of_every_kind(tmp_path, extension):
    for dtype in ("bool", "int8", "uint64", "float16", ">f4", "float64"):
        array = np.asfortranarray(np.array([[0, 1], [0, 0], [1, 1]]).astype(dtype))
        content = array if extension == ".npy" else {"only": array}
        columns, values, _ = read(make(tmp_path / f"data{extension}", content))
        assert columns == ("x0", "x1")
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, [[0, 1], [0, 0], [1, 1]])


def test_a_vector_is_one_column(tmp_path):
    columns, values, _ = read(make(tmp_path / "data.npy", np.array([1.0, 2.0, 4.0])))
    assert columns == ("x0",)
    np.testing.assert_array_equal(values, [[1], [2], [4]])


def test_an_array_of_an_npz_is_chosen_by_name(tmp_path):
    make(tmp_path / "data.npz", {"u": X, "v": X + 1})
    np.testing.assert_array_equal(read(f"{tmp_path}/data.npz:v").values, X + 1)


# Reading text

KINDS = ["virginica", "setosa", "virginica", "Zea mays"]
TEXT = {
    "csv": ("d.csv", "a,kind,b\n1,virginica,5\n2, setosa ,6\n3,virginica,7\n4,Zea mays,8\n"),
    "quoted csv": ("d.csv", 'a;kind;b\n1;"virginica";5\n2;setosa;6\n3;virginica;7\n4;"Zea mays";8'),
    "parquet": ("d.parquet", {"a": [1, 2, 3, 4], "kind": KINDS, "b": [5, 6, 7, 8]}),
    "large parquet": (
        "d.parquet",
        {"a": [1, 2, 3, 4], "kind": pa.array(KINDS, pa.large_string()), "b": [5, 6, 7, 8]},
    ),
    "dictionary": (
        "d.parquet",
        {"a": [1, 2, 3, 4], "kind": pa.array(KINDS).dictionary_encode(), "b": [5, 6, 7, 8]},
    ),
}


@pytest.mark.parametrize(("name", "content"), TEXT.values(), ids=TEXT)
def test_text_that_is_asked_for_is_places_among_its_sorted_texts(tmp_path, name, content):
    columns, values, labels = read(make(tmp_path / name, content), text=["kind", "gone"])
    assert columns == ("a", "kind", "b")
    assert values.tolist() == [[1, 2, 5], [2, 1, 6], [3, 2, 7], [4, 0, 8]]
    assert labels == {"kind": ("Zea mays", "setosa", "virginica")}


def test_text_across_many_blocks_has_one_list_of_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 512)
    kinds = np.random.default_rng(0).choice(["ab", "é", "b,c"], 3000)
    text = "kind\n" + "\n".join(f'"{kind}"' for kind in kinds) + "\n"
    groups = {"kind": pa.chunked_array([kinds[:7], kinds[7:2000], kinds[2000:]])}
    for path in (make(tmp_path / "d.csv", text), make(tmp_path / "d.parquet", groups)):
        _, values, labels = read(path, text=["kind"])
        assert labels == {"kind": ("ab", "b,c", "é")}
        np.testing.assert_array_equal(np.array(labels["kind"])[values[:, 0].astype(int)], kinds)


def test_numbers_stay_numbers_where_text_may_be(tmp_path):
    text = "int,real,flag,code\n1, -2.5e-3,true,1\n20,1e300 ,False,A7\n"
    plain = text.replace("A7", "2")
    names = ["int", "real", "flag", "code"]
    _, values, labels = read(make(tmp_path / "d.csv", plain), text=names)
    np.testing.assert_array_equal(values, read(tmp_path / "d.csv").values)
    assert not labels
    _, mixed, labels = read(make(tmp_path / "d.csv", text), text=names)
    np.testing.assert_array_equal(mixed[:, :3], values[:, :3])
    assert labels == {"code": ("1", "A7")}
    content = {"int": [1, 20], "real": [-0.0025, 1e300], "flag": [True, False], "code": ["1", "2"]}
    _, mixed, labels = read(make(tmp_path / "d.parquet", content), text=names)
    np.testing.assert_array_equal(mixed[:, :3], values[:, :3])
    assert labels == {"code": ("1", "2")}


def test_labels_go_with_their_column(tmp_path):
    data = read(make(tmp_path / "d.csv", "kind,a,b\nx,1,0\ny,2,0\nx,3,1\ny,4,1\n"), text=["kind"])
    taken, rest = take_columns(data, ["kind"])
    assert (taken.labels, rest.labels) == ({"kind": ("x", "y")}, {})
    np.testing.assert_array_equal(rest.values, data.values[:, 1:])
    for part in (*split(data, 0.5, key=mx.random.key(0)), *by_value(data, "b").values()):
        assert part.labels == {"kind": ("x", "y")}


BAD_TEXT = {
    "empty": ("d.csv", "a,kind\n1,x\n2,\n", "line 3 (row 2): column 'kind' has an empty cell; rem"),
    "none": (
        "d.csv",
        "a,kind\n1,x\n2,None\n",
        "column 'kind' holds 'None'; remove the row or fill",
    ),
    "null": (
        "d.parquet",
        {"a": [1, 2], "kind": ["x", None]},
        "row 2: column 'kind' is NaN or miss",
    ),
    "blank": (
        "d.parquet",
        {"a": [1, 2], "kind": [" ", "x"]},
        "row 1: column 'kind' is NaN or miss",
    ),
    "missing number": ("d.csv", "a,kind\n1,5\n2,NA\n", "line 3 (row 2): column 'kind' holds 'NA'"),
    "other cell": ("d.csv", "a,kind\n1,x\nz,y\n", "line 3 (row 2): column 'a' holds 'z'; remove"),
    "ragged": ("d.csv", "a,kind\n1,x\n2\n", "line 3 (row 2) has 1 cell for 2 columns"),
    "other text": ("d.csv", "day,kind\nMon,x\nTue,y\n", "not numbers: 'day' (line 2 (row 1)"),
    "other parquet": (
        "d.parquet",
        {"day": ["Mon"] * 2, "kind": ["x", "y"]},
        "not numbers: 'day'; rem",
    ),
    "dates": (
        "d.parquet",
        {"kind": pa.array([1, 2], pa.date32()), "a": [1, 2]},
        "not numbers: 'kind'; remove them",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_bad_text_is_one_line_that_says_where_and_what(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(make(tmp_path / name, content), text=["kind"])
    assert "\n" not in str(error.value)


# Reading what is wrong

BAD = {
    "empty csv": ("d.csv", "", "d.csv is empty"),
    "blank csv": ("d.csv", "\n\n", "d.csv is empty"),
    "empty npy": ("d.npy", b"", "d.npy is empty"),
    "header only": ("d.csv", "a,b\n", "has a header and no rows; expected rows of numbers"),
    "one row csv": ("d.csv", "a,b\n1,2\n", "has 1 row of data; expected at least 2"),
    "no row parquet": ("d.parquet", {"a": np.zeros(0)}, "has 0 rows of data"),
    "no column": ("d.npy", X[:, :0], "has no columns"),
    "empty cell": ("d.csv", "a,b\n1,2\n3,\n", "line 3 (row 2): column 'b' has an empty cell; rem"),
    "NaN csv": ("d.csv", "a,b\n1,nan\n3,4\n", "line 2 (row 1): column 'b' holds 'nan'; remove"),
    "NaN and no header": ("d.csv", "1,nan\n2,3\n4,5\n", "line 1 (row 1): column 'x1' holds 'nan'"),
    "NA csv": ("d.csv", "a,b\n1,2\n\n3,NA\n", "line 4 (row 2): column 'b' holds 'NA'; remove"),
    "inf csv": ("d.csv", "a,b\n1,2\n-inf,4\n", "line 3 (row 2): column 'a' holds '-inf'; remove"),
    "huge csv": ("d.csv", "a,b\n1,2\n1e999,4\n", "line 3 (row 2): column 'a' holds '1e999'"),
    "NaN npy": ("d.npy", np.where(X == -2, np.nan, X), "row 1: column 'x1' is NaN or missing"),
    "inf npy": ("d.npy", np.where(X == 3.25, -np.inf, X), "row 2: column 'x0' is infinite; remove"),
    "null parquet": ("d.parquet", {"a": [1, 2], "b": [3, None]}, "row 2: column 'b' is NaN or mis"),
    "text cell": ("d.csv", "a,b\n1,2\n3,oh no\n", "line 3 (row 2): column 'b' holds 'oh no'; rem"),
    "text first": ("d.csv", "a,b\nx,2\n3,4\n", "line 2 (row 1): column 'a' holds 'x'; remove"),
    "grouped": ("d.csv", "a,b\n1_000,2\n3,4\n", "line 2 (row 1): column 'a' holds '1_000'"),
    "text columns": (
        "d.csv",
        "a,kind,day\n1,x,2020-01-01\n3,,2020-01-02\n",
        "not numbers: 'kind', 'day' (line 2 (row 1): column 'kind' holds 'x'); remove",
    ),
    "short row": ("d.csv", "a,b\n1,2\n3\n", "line 3 (row 2) has 1 cell for 2 columns; complete"),
    "long row": ("d.csv", "a,b\n1,2\n3,4,5\n", "line 3 (row 2) has 3 cells for 2 columns"),
    "open quote": ("d.csv", 'a,b\n1,2\n"3,4\n5,6\n', "line 3 (row 2) has 1 cell for 2 columns"),
    "same names": ("d.csv", "a,b,a\n1,2,3\n4,5,6\n", "more than one column named 'a'; rename"),
    "same in parquet": (
        "d.parquet",
        pa.Table.from_arrays([pa.array([1, 2])] * 2, names=["a", "a"]),
        "more than one column named 'a'; rename",
    ),
    "scalar": ("d.npy", np.float64(3), "array of shape (); expected (rows, columns)"),
    "complex": ("d.npy", X + 1j, "values of type complex128; expected real numbers"),
    "strings": ("d.npy", np.array(["a", "b"]), "values of type <U1; expected real numbers"),
    "several": ("d.npz", {"u": X, "v": X}, "holds 2 arrays: 'u', 'v'; choose one, as"),
    "no array": ("d.npz", {}, "holds no arrays"),
    "not npz": ("d.npz", b"PK\x03\x04 is how a zip starts", "cannot be read as .npz"),
    "extension": ("d.xlsx", "1 2\n", "is '.xlsx'; known are .csv, .tsv, .txt, .csv.gz"),
}


@pytest.mark.filterwarnings("ignore:.*first line has no names")
@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_one_line_that_says_where_and_what(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, pa.Table):
        parquet.write_table(content, path)
    else:
        make(path, content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value).replace("x\ny", "")


@pytest.mark.parametrize("extension", [".npy", ".npz", ".parquet", ".csv.gz"])
def test_truncated_file(tmp_path, extension):
    rows = np.random.default_rng(0).standard_normal((500, 2))
    content = {
        ".npy": rows,
        ".npz": {"a": rows},
        ".parquet": {"a": rows[:, 0]},
        ".csv.gz": gzip.compress("\n".join(["a", *map(str, rows[:, 0])]).encode()),
    }[extension]
    path = make(tmp_path / f"d{extension}", content)
    whole = path.read_bytes()
    for kept in (0.1, 0.5, 0.98):
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(ValueError, match=f"cannot be read as {extension}.*complete"):
            read(path)


def test_missing_file_names_its_neighbours(tmp_path):
    make(tmp_path / "wine.csv", "a\n1\n2\n")
    with pytest.raises(ValueError, match=r"there is no file .*wime\.csv; did you mean wine\.csv"):
        read(tmp_path / "wime.csv")
    with pytest.raises(ValueError, match=r"there is no file .*quite_else\.csv$"):
        read(tmp_path / "quite_else.csv")
    with pytest.raises(ValueError, match=r"nor a folder .*nowhere"):
        read(tmp_path / "nowhere" / "wine.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


def test_missing_array_names_those_there_are(tmp_path):
    make(tmp_path / "d.npz", {"u": X})
    with pytest.raises(ValueError, match=r"holds no array 'w' but 'u'; choose one, as .*npz:u"):
        read(f"{tmp_path}/d.npz:w")
    with pytest.raises(ValueError, match=r"there is no file .*e\.npz; did you mean d\.npz"):
        read(f"{tmp_path}/e.npz:u")


# Standardising


def test_standardised_columns_have_mean_0_and_std_1_and_come_back():
    rows = np.random.default_rng(0).normal([3, -200, 0], [0.5, 40, 1e-9], (400, 3))
    data = Table(("a", "b", "c"), rows)
    standardizer = Standardizer.fit(data)
    z = standardizer.transform(rows)
    assert z.dtype == mx.float32
    np.testing.assert_allclose(np.array(z).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.array(z).std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(standardizer.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(standardizer.scale, rows.std(0), rtol=1e-12)
    error = standardizer.inverse(z) - rows
    assert np.abs(error / rows.std(0)).max() < 1e-6


def test_a_large_offset_keeps_its_digits():
    # float32 holds 1e9 to the nearest 64.
    rows = 1e9 + np.random.default_rng(0).standard_normal((1000, 1))
    standardizer = Standardizer.fit(Table(("a",), rows))
    z = standardizer.transform(rows)
    np.testing.assert_allclose(np.array(z), (rows - rows.mean()) / rows.std(), atol=1e-6)
    np.testing.assert_allclose(standardizer.inverse(z), rows, rtol=0, atol=2e-6)


@pytest.mark.parametrize("magnitude", [1e-300, 1e300])
def test_extreme_units_neither_overflow_nor_vanish(magnitude):
    rows = magnitude * np.array([[1.0], [2.0], [6.0]])
    standardizer = Standardizer.fit(Table(("a",), rows))
    z = standardizer.transform(rows)
    np.testing.assert_allclose(
        np.array(z)[:, 0], np.array([-2, -1, 3]) / (14 / 3) ** 0.5, rtol=1e-6
    )
    np.testing.assert_allclose(standardizer.inverse(z), rows, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, -1e9 - 0.3, 1e300])
def test_a_constant_column_is_left_out_and_put_back_exactly(constant):
    data = table([1, 2, 3], [constant] * 3, [5, 5, 8])
    with pytest.warns(UserWarning, match="constant, so carried through unchanged: 'c1'"):
        standardizer = Standardizer.fit(data)
    assert standardizer.modelled == ("c0", "c2")
    z = standardizer.transform(data.values)
    assert z.shape == (3, 2)
    np.testing.assert_allclose(np.array(z).std(0), 1, rtol=1e-6)
    sampled = standardizer.inverse(np.array([[9.0, -7.0], [0.0, 0.0]]))
    assert sampled[:, 1].tolist() == [constant, constant]
    np.testing.assert_allclose(sampled[1], [2, constant, 6])


def test_only_constant_columns_is_an_error():
    with pytest.raises(ValueError, match=r"every column is constant.*'c0', 'c1'"):
        Standardizer.fit(table([1, 1], [2, 2]))


def test_varying_columns_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Standardizer.fit(table([1, 2], [1e9, 1e9 + 1e-6]))


def test_standardizer_survives_json_exactly():
    rows = np.random.default_rng(0).standard_normal((50, 3)) * [1e-30, 1, 1e30]
    rows[:, 1] = 1 / 3
    with pytest.warns(UserWarning, match="c1"):
        standardizer = Standardizer.fit(table(*rows.T))
    again = Standardizer.from_dict(json.loads(json.dumps(standardizer.to_dict())))
    assert again.columns == standardizer.columns
    assert again.modelled == ("c0", "c2")
    z = np.random.default_rng(1).standard_normal((5, 2))
    np.testing.assert_array_equal(again.inverse(z), standardizer.inverse(z))


def test_rows_that_do_not_fit_the_standardizer():
    standardizer = Standardizer.fit(table([1, 2], [1, 3]))
    with pytest.raises(ValueError, match=r"shape \(4, 3\); expected \(n, 2\).*'c0', 'c1'"):
        standardizer.transform(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(n, 2\)"):
        standardizer.inverse(mx.zeros((2,)))
    with pytest.raises(ValueError, match=r"row 2: column 'c1' is 1e\+39 standard deviations"):
        standardizer.transform(np.array([[1, 1], [1, 1e39]]))


# Splitting


@pytest.mark.parametrize(
    ("rows", "holdout", "held"),
    [(100, 0.256, 26), (2, 0.1, 1), (5, 0.999, 4)],
)
def test_split_sizes_and_that_no_row_is_lost(rows, holdout, held):
    data = table(np.arange(rows), -np.arange(rows))
    training, test = split(data, holdout, key=mx.random.key(0))
    assert len(test.values) == held
    assert sorted(np.concatenate([training.values, test.values])[:, 0]) == list(range(rows))
    assert training.columns == test.columns == data.columns
    for part in (training, test):
        np.testing.assert_array_equal(part.values[:, 1], -part.values[:, 0])


def test_split_is_fixed_by_the_key_and_unrelated_to_the_order():
    data = table(np.arange(1000))
    test, again, other = (split(data, 0.3, key=mx.random.key(k))[1].values for k in (0, 0, 1))
    np.testing.assert_array_equal(test, again)
    assert 50 < len(np.intersect1d(test, other)) < 130  # 90 expected, standard deviation 7
    assert test.mean() == pytest.approx(499.5, abs=60)  # standard deviation 14


@pytest.mark.parametrize("holdout", [0, 1, float("nan")])
def test_split_refuses_what_is_not_a_fraction(holdout):
    with pytest.raises(ValueError, match="expected a fraction between 0 and 1"):
        split(table([1, 2]), holdout, key=mx.random.key(0))


# Writing


@pytest.mark.parametrize(
    ("extension", "error"),
    [(".csv", RuntimeError), (".parquet", KeyboardInterrupt), (".npy", KeyboardInterrupt)],
)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, extension, error):
    path = tmp_path / f"rows{extension}"
    path.write_text("old")

    def interrupted():
        with open_writer(path, ("a", "b")) as out:
            out.write(X)
            assert len(os.listdir(tmp_path)) == 2  # a rename is atomic only within a file system
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


def test_a_batch_of_another_width_is_refused(tmp_path):
    message = r"shape \(3, 2\); expected \(n, 3\)"
    with (
        pytest.raises(ValueError, match=message),
        open_writer(tmp_path / "rows.npy", ("a", "b", "c")) as out,
    ):
        out.write(X)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", WRITERS)
def test_mlx_batches_are_written(tmp_path, extension):
    path = tmp_path / f"rows{extension}"
    with open_writer(path, ("a", "b")) as out:
        out.write(mx.array([[1.0, 2.5], [3.0, 4.0]]))
    np.testing.assert_array_equal(read(path).values, [[1, 2.5], [3, 4]])


def test_csv_is_readable_text(tmp_path):
    path = tmp_path / "rows.csv"
    with open_writer(path, ("a", "b, c")) as out:
        out.write(np.array([[1, 0.1], [-2.5, 1e300]]))
    assert path.read_text() == 'a,"b, c"\n1,0.1\n-2.5,1e+300\n'


def test_places_that_cannot_be_written(tmp_path):
    for path, message in [
        (tmp_path / "rows.txt", r"is '\.txt'; known are \.csv, \.parquet, \.npy"),
        (tmp_path / "rows", r"is ''; known are"),
        (tmp_path / "nowhere" / "rows.csv", r"there is no folder .*nowhere; create it first"),
        (tmp_path / ("x" * 252 + ".csv"), "File name too long"),  # an error of the system's
    ]:
        with pytest.raises(ValueError, match=message), open_writer(path, ("a",)):
            pytest.fail("opened")
    (tmp_path / "folder.csv").mkdir()
    with (
        pytest.raises(ValueError, match=r"folder\.csv: it is a folder"),
        open_writer(tmp_path / "folder.csv", ("a",)),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize("extension", WRITERS)
def test_memory_does_not_grow_with_the_rows(tmp_path, extension):
    batch = np.random.default_rng(0).standard_normal((2000, 5))

    def peak(batches):
        before = pa.default_memory_pool().bytes_allocated()
        tracemalloc.start()
        with open_writer(tmp_path / f"rows{extension}", tuple("abcde")) as out:
            for _ in range(batches):
                out.write(batch)
            held = pa.default_memory_pool().bytes_allocated() - before
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + held

    peak(2)  # imports and caches
    few, many = peak(5), peak(100)  # 0.4 and 8 MB of numbers
    assert many < few + 500_000


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_a_misspelt_column_of_text_is_named(name, tmp_path):
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("kind,a\nx,1\ny,2\n")
    else:
        pa.parquet.write_table(pa.table({"kind": ["x", "y"], "a": [1, 2]}), path)
    with pytest.raises(ValueError, match=r"no column 'kidn' \(did you mean 'kind'\?\)"):
        read(path, text=["kidn"])
