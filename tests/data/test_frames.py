"""Rows in the forms that people hold them, taken and given back."""

import subprocess
import sys
import warnings
from decimal import Decimal

import mlx.core as mx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

from flowmlx.data.arrays import FORMS, form_of, in_form, rows_for, table_for, table_of, take_columns
from flowmlx.data.conditions import ConditionColumns

COLUMNS = {"height": [1.5, 2.25, -3.0], "kind": ["b", "a", "b"], "age": [7, 8, 9]}
VALUES = [[1.5, 1, 7], [2.25, 0, 8], [-3, 1, 9]]
ROWS = np.array([[1.5, 7], [2.25, 8], [-3, 9]])


def csv(folder):
    path = folder / "d.csv"
    pd.DataFrame(COLUMNS).to_csv(path, index=False)
    return path


def parquet_name(folder):
    parquet.write_table(pa.table(COLUMNS), folder / "d.parquet")
    return str(folder / "d.parquet")


# Rows with names, each made in a folder of the test, by their form.
NAMED = {
    "csv": ("arrow", csv),
    "parquet": ("arrow", parquet_name),
    "pandas": ("pandas", lambda _: pd.DataFrame(COLUMNS)),
    "polars": ("polars", lambda _: pl.DataFrame(COLUMNS)),
    "arrow": ("arrow", lambda _: pa.table(COLUMNS)),
    "record batch": ("arrow", lambda _: pa.record_batch(COLUMNS)),
    "batches, read once": ("arrow", lambda _: pa.table(COLUMNS).to_reader()),
}


def npy(folder):
    np.save(folder / "d.npy", ROWS)
    return folder / "d.npy"


ARRAYS = {
    "npy": ("arrow", npy),
    "float64": ("numpy", lambda _: ROWS),
    "float32": ("numpy:float32", lambda _: ROWS.astype(np.float32)),
    "float16, by columns": ("numpy:float16", lambda _: np.asfortranarray(ROWS.astype(np.float16))),
    "lists": ("numpy", lambda _: ROWS.tolist()),
    "mlx": ("mlx", lambda _: mx.array(ROWS)),
    "bfloat16": ("mlx", lambda _: mx.array(ROWS).astype(mx.bfloat16)),
}


def said(call):
    """What a call returns, and its warnings, which have to point at this file."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = call()
    assert all(warning.filename == __file__ for warning in seen)
    return result, [str(warning.message) for warning in seen]


# Taking rows


@pytest.mark.parametrize(("form", "make"), NAMED.values(), ids=NAMED)
def test_rows_with_names_are_the_same_table_in_every_form(tmp_path, form, make):
    data = make(tmp_path)
    assert form_of(data) == form
    (columns, values, labels), messages = said(lambda: table_of(data, ["kind"]))
    assert (columns, labels) == (("height", "kind", "age"), {"kind": ("a", "b")})
    assert values.tolist() == VALUES
    assert values.dtype == np.float64
    assert not messages


@pytest.mark.parametrize(("form", "make"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_columns_x0_x1(tmp_path, form, make):
    data = make(tmp_path)
    assert form_of(data) == form
    columns, values, labels = table_of(data)
    assert (columns, dict(labels)) == (("x0", "x1"), {})
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, ROWS)
    if form != "arrow":
        assert table_of(data[0]).values.shape == (2, 1)


def test_columns_of_pandas_of_every_kind():
    columns = {
        "bool": [True, False],
        "int8": pd.Series([1, -1], dtype="int8"),
        "uint64": pd.Series([2**63, 1], dtype="uint64"),
        "nullable": pd.Series([3, 4], dtype="Int64"),
        "nullable bool": pd.Series([False, True], dtype="boolean"),
        "half": pd.Series([0.5, 2], dtype="float16"),
        "arrow": pd.Series([5, 6], dtype="int64[pyarrow]"),
        "decimal": [Decimal("1.25"), Decimal("-3.5")],
        "objects": pd.Series([1, 2.5], dtype=object),
        "sparse": pd.arrays.SparseArray([0.0, 7.0]),
        "categories of numbers": pd.Categorical([30, 10]),
        "categories of bools": pd.Categorical([True, False]),
        "text": [" x ", "w"],
        "categories": pd.Categorical(["x", "w"], categories=["x", "y", "w"]),
    }
    names, values, labels = table_of(pd.DataFrame(columns), ["text", "categories", "nullable"])
    assert names == tuple(columns)
    assert values.tolist() == [
        [1, 1, 2.0**63, 3, 0, 0.5, 5, 1.25, 1, 0, 30, 1, 1, 1],
        [0, -1, 1, 4, 1, 2, 6, -3.5, 2.5, 7, 10, 0, 0, 0],
    ]
    assert labels == {"text": ("w", "x"), "categories": ("w", "x")}


def test_columns_of_polars_of_every_kind():
    columns = {
        "bool": [True, False],
        "wide": pl.Series([2**62, 1], dtype=pl.Int128),
        "single": pl.Series([0.5, 2], dtype=pl.Float32),
        "decimal": [Decimal("1.25"), Decimal("-3.5")],
        "text": ["x", "w"],
        "categories": pl.Series(["x", "w"], dtype=pl.Categorical),
        "enum": pl.Series(["x", "w"], dtype=pl.Enum(["y", "x", "w"])),
    }
    frame, text = pl.DataFrame(columns), ["text", "categories", "enum"]
    names, values, labels = table_of(frame, text)
    assert names == tuple(columns)
    assert values.tolist() == [[1, 2.0**62, 0.5, 1.25, 1, 1, 1], [0, 1, 2, -3.5, 0, 0, 0]]
    assert labels == dict.fromkeys(text, ("w", "x"))
    newer = pa.table(frame.select(text))  # the types that polars itself has for text
    assert table_of(newer, text).values.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_names_of_pandas_become_text():
    assert table_of(pd.DataFrame(ROWS)).columns == ("0", "1")
    levels = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])
    assert table_of(pd.DataFrame(ROWS, columns=levels)).columns == ("('a', 1)", "('a', 2)")


FRAME = pd.DataFrame({"Unnamed: 0": [0, 1, 2], "a": [1, 2, 4], "b": [5, 6, 7]})


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        (FRAME, "ab", "'Unnamed: 0'"),
        (pl.DataFrame({"a": [1, 2], "__index_level_0__": ["x", "y"]}), "a", "__index_level_0__"),
        (FRAME[["a", "b"]], "ab", None),
        (FRAME[["a", "b"]].set_index("b"), "a", "'b'"),
        (FRAME[["a", "b"]].set_index(pd.RangeIndex(3, name="n")), "ab", "'n'"),
        (FRAME[["a", "b"]].iloc[[0, 1, 0]], "ab", "(no name)"),
    ],
)
def test_an_index_is_left_out_with_a_word_unless_it_only_counts_the_rows(data, columns, message):
    table, messages = said(lambda: table_of(data))
    assert table.columns == tuple(columns)
    assert [message in said for said in messages] == [True] * (message is not None)
    assert all(said.startswith("data: left out, as an index") for said in messages)


def objects(*values):
    return pd.DataFrame({"a": [1, 2], "k": pd.Series(values, dtype=object)})


# data, the error, what it says
REFUSED = {
    "NaN": (pd.DataFrame({"a": [1, 2], "b": [1, np.nan]}), ValueError, "row 2: column 'b' is NaN"),
    "NA": (pd.DataFrame({"a": pd.array([1, None], "Int64")}), ValueError, "row 2: column 'a' is N"),
    "null": (pl.DataFrame({"a": [None, 2]}), ValueError, "row 1: column 'a' is NaN or missing"),
    "nulls alone": (objects(None, None), ValueError, "row 1: column 'k' is NaN or missing"),
    "infinite": (np.array([[1, 2], [-np.inf, 4]]), ValueError, "row 2: column 'x0' is infinite"),
    "text": (pl.DataFrame({"t": ["x", "y"], "a": [1, 2]}), ValueError, "not numbers: 't'; remove"),
    "mixed": (objects(1, "x"), ValueError, "column 'k' holds values of type int and str"),
    "complex": (objects(1j, 2), ValueError, "column 'k' holds values of type complex and int"),
    "large integers": (objects(2**70, 1), ValueError, "type int; expected numbers"),
    "lists": (objects([1], [2]), ValueError, "not numbers: 'k'"),
    "dates": (
        pd.DataFrame({"day": pd.to_datetime(["2020", "2021"])}),
        ValueError,
        "numbers: 'day'",
    ),
    "objects": (pl.DataFrame({"o": pl.Series([{}, 1], dtype=pl.Object)}), ValueError, "rs: 'o'"),
    "names": (pd.DataFrame(ROWS, columns=[1, "1"]), ValueError, "one column named '1'; rename"),
    "names of Arrow": (pa.table([[1, 2]] * 2, ["a", "a"]), ValueError, "one column named 'a'"),
    "no column": (pd.DataFrame(index=[0, 1]), ValueError, "has no columns"),
    "no row": (pl.DataFrame({"a": []}), ValueError, "has 0 rows of data; expected at least 2"),
    "one row": (mx.zeros((1, 3)), ValueError, "has 1 row of data; expected at least 2"),
    "cube": (mx.zeros((2, 3, 4)), ValueError, "shape (2, 3, 4); expected (rows, columns) or"),
    "scalar": (np.float64(3), ValueError, "shape (); expected (rows, columns)"),
    "ragged": ([[1, 2], [3]], ValueError, "expected an array of numbers, with rows of one"),
    "complex of MLX": (mx.array([1j, 2]), TypeError, "complex numbers; expected real ones"),
    "gaps of NumPy": (np.ma.array([1, 2], mask=[True, False]), ValueError, "a masked array with"),
    "text of NumPy": (np.array([["x"], ["y"]]), TypeError, "array of <U1 (2, 1); expected numbers"),
    "series": (pd.Series([1, 2]), TypeError, "of type Series; expected a data frame: .to_frame()"),
    "series of polars": (pl.Series([1, 2]), TypeError, "of type Series; expected a data frame"),
    "lazy": (pl.LazyFrame({"a": [1, 2]}), TypeError, "of type LazyFrame; expected a data frame"),
    "dict": ({"a": [1, 2]}, TypeError, "of type dict; expected a table, as pyarrow.table"),
    "column": (pa.chunked_array([[1, 2]]), TypeError, "of type ChunkedArray; expected a table"),
    "nothing": (None, TypeError, "is None; expected the path of a file, a data frame"),
}


@pytest.mark.parametrize(("data", "error", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:data. left out")
def test_what_is_refused_is_one_line_with_the_name_of_the_argument(data, error, words):
    with pytest.raises(error) as caught:
        table_of(data)
    message = str(caught.value)
    assert message.startswith("data")
    assert words in message
    assert "\n" not in message


def test_text_that_is_missing_or_misspelt_is_refused():
    with pytest.raises(ValueError, match=r"row 2: column 'k' is NaN .* fill in a value"):
        table_of(objects("x", None), ["k"])
    with pytest.raises(ValueError, match=r"not numbers: 'kind'.*--condition.*condition="):
        table_of(pd.DataFrame(COLUMNS))
    with pytest.raises(ValueError, match=r"no column 'kidn' \(did you mean 'kind'"):
        table_of(pd.DataFrame(COLUMNS), ["kidn"])


def test_tables_larger_than_a_model_are_refused(monkeypatch):
    monkeypatch.setattr("flowmlx.data.arrays.sources.MOST_COLUMNS", 2)
    for data in (pl.DataFrame(COLUMNS), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="data has 3 columns; at most 2"):
            table_of(data)


# Giving rows back

GIVEN = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.Table,
    "mlx": mx.array,
    "numpy:float16": np.ndarray,
    "numpy:float32": np.ndarray,
    "numpy": np.ndarray,
}


def test_there_is_a_case_for_each_form():
    assert GIVEN.keys() == FORMS.keys()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [3, 0])
def test_rows_come_back_in_their_form_and_are_of_it(form, size):
    names = ("größe", "a.b")
    values = np.array([[1 / 3, 2], [-1, 0.5], [1e3, 7]])[:size]
    made = in_form(form, names, values)
    assert isinstance(made, GIVEN[form])
    assert form_of(made) == form
    if form in ("pandas", "polars", "arrow"):
        assert list(getattr(made, "column_names", getattr(made, "columns", ()))) == list(names)
        np.testing.assert_array_equal(rows_for(names, made, "rows"), values)  # every digit
    else:
        dtype = {"mlx": "float32", "numpy": "float64"}.get(form, form.removeprefix("numpy:"))
        assert str(made.dtype).endswith(dtype)
        np.testing.assert_array_equal(np.array(made), values.astype(dtype))
    again = in_form(form, names, rows_for(names, made, "rows"))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(made))


def test_frames_hold_float64():
    assert set(in_form("pandas", "ab", ROWS).dtypes) == {np.dtype("float64")}
    assert set(in_form("polars", "ab", mx.array(ROWS)).dtypes) == {pl.Float64}
    assert in_form("arrow", "ab", ROWS).schema == pa.schema(
        [("a", pa.float64()), ("b", pa.float64())]
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_without_the_library_rows_are_a_table_with_a_word(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    made, messages = said(lambda: in_form(library, "ab", ROWS))
    assert made.to_pydict() == {"a": ROWS[:, 0].tolist(), "b": ROWS[:, 1].tolist()}
    assert len(messages) == 1
    assert f"pip install {library}" in messages[0]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"unknown form 'panda' .*pandas"):
        in_form("panda", "ab", ROWS)


# Rows for a trained flow


@pytest.mark.parametrize(("form", "make"), NAMED.values(), ids=NAMED)
def test_rows_are_matched_by_name_and_other_columns_do_not_matter(tmp_path, form, make):
    rows, messages = said(lambda: rows_for(("age", "height"), make(tmp_path), "rows"))
    np.testing.assert_array_equal(rows, ROWS[:, ::-1])
    assert not messages


@pytest.mark.parametrize(("form", "make"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_matched_by_position(tmp_path, form, make):
    data = make(tmp_path)
    np.testing.assert_array_equal(rows_for(("b", "a"), data, "rows"), ROWS)
    with pytest.raises(
        ValueError, match=r"shape \(3, 2\); expected \(n, 3\), the columns 'a', 'b'"
    ):
        rows_for("abc", data, "rows")


def test_one_axis_is_one_row_or_rows_of_one_column():
    assert rows_for(("b", "a"), [1, 2], "rows").tolist() == [[1, 2]]
    assert rows_for(("a",), mx.array([1, 2]), "rows").tolist() == [[1], [2]]
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(n, 2\)"):
        rows_for(("b", "a"), np.ones(3), "rows")


def test_a_single_row_and_none_are_rows(tmp_path):
    (tmp_path / "d.csv").write_text("b,name,a\n2,x,1\n")
    np.save(tmp_path / "d.npy", [[1.0, 2.0]])
    frame = pd.DataFrame({"a": [1.0], "b": [2.0]})
    for data in (tmp_path / "d.csv", tmp_path / "d.npy", frame, pl.DataFrame(frame), [[1, 2]]):
        assert rows_for("ab", data, "rows").tolist() == [[1, 2]]
    for none in (frame[:0], pl.DataFrame(frame)[:0], pa.table(frame)[:0], np.zeros((0, 2))):
        assert rows_for("ab", none, "rows").shape == (0, 2)


OTHERS = {
    "other": ["x", None, ""],
    "mixed": [1, "x", None],
    "gaps": [1.0, np.nan, np.inf],
    "Unnamed: 0": [0, 1, 2],
}


@pytest.mark.parametrize("form", ["csv", "parquet", "pandas", "polars"])
def test_what_other_columns_hold_does_not_matter(tmp_path, form):
    frame = pd.DataFrame({**OTHERS, **COLUMNS}).set_index("other", drop=False)
    if form == "csv":
        frame.to_csv(tmp_path / "d.csv")
    if form == "parquet":
        frame.drop(columns="mixed").to_parquet(tmp_path / "d.parquet", index=False)
    if form == "polars":
        mixed = pl.Series(OTHERS["mixed"], dtype=pl.Object)
        frame = pl.DataFrame({**OTHERS, **COLUMNS, "mixed": mixed}, strict=False)
    data = tmp_path / f"d.{form}" if form in ("csv", "parquet") else frame
    rows, messages = said(lambda: rows_for(("age", "height"), data, "rows"))
    np.testing.assert_array_equal(rows, ROWS[:, ::-1])
    assert not messages


def test_what_the_condition_holds_comes_behind_where_it_is_there(tmp_path):
    for _, make in NAMED.values():
        table = table_for(("age", "height"), make(tmp_path), "rows", ["kind", "gone"])
        assert table.columns == ("age", "height", "kind")
        assert table.labels == {"kind": ("a", "b")}
        condition, rows = take_columns(table, ["kind"])
        assert condition.values.tolist() == [[1], [0], [1]]
        np.testing.assert_array_equal(rows.values, ROWS[:, ::-1])
    assert table_for("ab", ROWS, "rows", ["kind"]).columns == ("a", "b")


@pytest.mark.parametrize(
    ("data", "columns", "words"),
    [
        (pd.DataFrame(COLUMNS), ("height", "Age"), "rows has no column 'Age' (did you mean 'age'?"),
        (pl.DataFrame(COLUMNS), ("b", "age", "z"), "rows has no column 'b', 'z'; it has 'height'"),
        (pd.DataFrame({"a": [1, 2], "b": [1, np.nan]}), "ba", "rows, row 2: column 'b' is NaN"),
        ([[1, 2], [np.inf, 4]], "ba", "rows, row 2: column 'b' is infinite"),
        (pd.DataFrame({"a": ["1", "2"]}), "a", "rows has columns that are not numbers: 'a'; expec"),
        (pd.DataFrame(ROWS, columns=["a", "a"]), "a", "more than one column named 'a'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(data, columns, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        table_for(tuple(columns), data, "rows", ["kind", "gone"])
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, name):
    frame = pd.DataFrame({"a": [1, 2], "b": [3.5, np.nan]})
    frame.to_csv(tmp_path / name, index=False) if "csv" in name else frame.to_parquet(
        tmp_path / name
    )
    with pytest.raises(ValueError, match=rf"{name} has no column 'c'; it has 'a', 'b'"):
        rows_for("ac", tmp_path / name, "rows")
    with pytest.raises(ValueError, match=rf"{name}.*row 2.*column 'b'"):
        rows_for("ab", tmp_path / name, "rows")


def test_names_with_points_are_columns_of_their_own(tmp_path):
    parts = pa.array([{"b": 1.0}, {"b": 2.0}])
    parquet.write_table(
        pa.table({"a": parts, "a.b": [3.0, 4.0], "x": [5, 6]}), tmp_path / "d.parquet"
    )
    rows = rows_for(("x", "a.b"), tmp_path / "d.parquet", "rows")
    assert rows.tolist() == [[5, 3], [6, 4]]


# Conditions of such rows


def test_labels_of_other_rows_are_those_of_the_data():
    trained = ConditionColumns.fit(table_of(pd.DataFrame({"kind": ["a", "b", "c"]}), ["kind"]))
    rows = table_for((), pd.DataFrame({"x": [1, 2, 3], "kind": ["c", "b", "c"]}), "rows", ["kind"])
    assert rows.values.tolist() == [[1], [0], [1]]
    assert trained.encode_table(rows).tolist() == [2, 1, 2]
    with pytest.raises(ValueError, match=r"kind is 'd'; kind was one of: 'a', 'b', 'c'"):
        trained.encode_table(table_of(pd.DataFrame({"kind": ["a", "d"]}), ["kind"]))
    with pytest.raises(ValueError, match="no column 'kind'"):
        trained.encode_table(table_of(ROWS))


def test_numbers_are_labels_where_the_data_had_them_as_text():
    trained = ConditionColumns.fit(table_of(pd.DataFrame({"code": ["1", "20", "A7"]}), ["code"]))
    assert trained.encode_table(table_of(pd.DataFrame({"code": [20, 1, 20]}))).tolist() == [1, 0, 1]


def test_conditions_that_are_numbers_are_in_their_units():
    trained = ConditionColumns.fit(table_of(pd.DataFrame({"a": [0, 2.0], "b": [10, 30]})))
    other = pd.DataFrame({"b": [30, 20], "a": [2, 1]})
    assert trained.encode_table(table_of(other)).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match="'a' holds text; expected numbers"):
        trained.encode_table(table_of(other.assign(a=["x", "y"]), ["a"]))


def test_nothing_of_arrow_or_frames_is_imported_before_it_is_needed():
    code = """
import sys
import numpy as np
from flowmlx.data.arrays import form_of, in_form, rows_for, table_of
table_of(np.zeros((2, 2)))
in_form(form_of(np.zeros(2)), "ab", rows_for("ab", [1, 2], "rows"))
assert not {"pyarrow", "pandas", "polars"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
