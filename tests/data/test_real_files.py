"""Files as people have them: each is read rightly, or refused with the place and what to do."""

# ruff: noqa: E501 - a line of a table is a file

import gzip
import io
import os
import tracemalloc
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from flowmlx.data.arrays import delimited, layout, read, sources

NBSP, THIN, MINUS = "\u00a0", "\u202f", "\u2212"

# name, content, columns, rows, what is said (None: nothing)
RIGHT = {
    # what separates cells
    "German Excel": ("d.csv", "a;b\n1,5;-2\n1.234,5;1e3\n", "ab", [[1.5, -2], [1234.5, 1000]], "1234"),
    "sep line": ("d.csv", "sep=;\r\na;b\r\n1,5;2\r\n3;4\r\n", "ab", [[1.5, 2], [3, 4]], None),
    "commas in names": ("d.csv", "a, b;c, d\n1;2.5\n3;4\n", ("a, b", "c, d"), [[1, 2.5], [3, 4]], None),
    "commas in quotes": ("d.csv", '"a;b",c\n"1,5","2,5"\n"3","4,25"\n', ("a;b", "c"), [[1.5, 2.5], [3, 4.25]], None),
    "tabs and decimal commas": ("d.tsv", "a\tb\n1,5\t2\n0,123\t4\n", "ab", [[1.5, 2], [0.123, 4]], None),
    "commas in a .tsv": ("d.tsv", "a,b\n1,2\n3,4.5\n", "ab", [[1, 2], [3, 4.5]], None),
    "names as files begin": ("d.csv", "PAR1,BZh\n1,2\n3,4.5\n", ("PAR1", "BZh"), [[1, 2], [3, 4.5]], None),
    "bars": ("d.txt", "a | b\n1 | 2\n3 | 4.5\n", "ab", [[1, 2], [3, 4.5]], None),
    "numpy.savetxt": ("d.txt", "# a b\n1.0e+00 2.5e-01\n3.0e+00 4.0e+00\n", "ab", [[1, 0.25], [3, 4]], "comment"),
    "aligned": ("d.txt", '  "a a"   b\n\n 1.0    2\n10.5  -3\n', ("a a", "b"), [[1, 2], [10.5, -3]], None),
    "one column": ("d.csv", "my name\n1\n2.5\n", ("my name",), [[1], [2.5]], None),
    "one column, decimal commas": ("d.csv", 'a\n"1,5"\n"2,25"\n', "a", [[1.5], [2.25]], None),
    # lines that are no rows
    "comments": ("d.csv", "# by hand, 2020\n\na,b\n1,2\n  # doubtful, 7\n  \n3,4\n", "ab", [[1, 2], [3, 4]], None),
    "BED": ("d.tsv", "##v1\n#start\tend\n1\t5\n2\t6\n", ("start", "end"), [[1, 5], [2, 6]], "comment"),
    "old Mac": ("d.csv", "a,b\r1,2\r3,4\r", "ab", [[1, 2], [3, 4]], None),
    "UCI, text first": ("d.csv", "5.1,3.5,x\n4.9,3.0,y\n4,3,y\n5,3,x\n", ("5.1", "3.5", "x"), [[4.9, 3, 1], [4, 3, 1], [5, 3, 0]], "'5.1' is a number"),
    # how numbers are written
    "American": ("d.csv", 'a,b\n"1,234",2.5\n"1,234,567.5",3\n', "ab", [[1234, 2.5], [1234567.5, 3]], "1234"),
    "points between thousands": ("d.csv", "a;b\n1.234.567;2\n1.234;3\n", "ab", [[1234567, 2], [1234, 3]], "1234567"),
    "French": ("d.csv", f"a;b\n1{NBSP}234,5;2\n1{THIN}000;3\n", "ab", [[1234.5, 2], [1000, 3]], "1234.5"),
    "Swiss": ("d.csv", "a;b\n1'234.50;2\n1’000;3\n", "ab", [[1234.5, 2], [1000, 3]], "1234.5"),
    "thousandths": ("d.csv", "a,b\n1.234,5.678\n2.345,6.789\n", "ab", [[1.234, 5.678], [2.345, 6.789]], None),
    "thousandths or thousands": ("d.csv", "a;b\n1.234;5\n2.345;6\n", "ab", [[1.234, 5], [2.345, 6]], "decimals, not"),
    "quotes of text": ("d.csv", "a,b\n'1.5',\"2\"\n\"\"\"3\"\"\",' 4 '\n", "ab", [[1.5, 2], [3, 4]], None),
    "blanks and signs": ("d.csv", f"a,b\n{NBSP}1{NBSP},+2\n{MINUS}3,.5e1\n", "ab", [[1, 2], [-3, 5]], None),
    "true beside 1": ("d.csv", "a,b\ntrue,1\n0,2\nFALSE,3\n1,4\n", "ab", [[1, 1], [0, 2], [0, 3], [1, 4]], None),
    # what pandas, R and spreadsheets add
    "pandas' index": ("d.csv", ",a\n0,1.5\n1,2.5\n", "a", [[1.5], [2.5]], "left out"),
    "R's row names": ("d.csv", '"","a"\n"Mazda RX4",1.5\n"Fiat",2.5\n', "a", [[1.5], [2.5]], "left out"),
    "R's write.table": ("d.txt", '"a" "b"\n"Mazda RX4" 234 567\n"2" 345 678\n', "ab", [[234, 567], [345, 678]], "left out"),
    "the same, German": ("d.csv", '"a";"b"\n"1";2,5;7\n"2";3,5;8\n', "ab", [[2.5, 7], [3.5, 8]], "left out"),
    "index twice": ("d.csv", "Unnamed: 0.1,Unnamed: 0,a\n0,0,1.5\n1,1,2.5\n", "a", [[1.5], [2.5]], "'Unnamed: 0'"),
    "empty last column": ("d.csv", "a,b,\n1,2,\n3,4,\n", "ab", [[1, 2], [3, 4]], "as empty"),
    "Kaggle": ("d.csv", "a,b,Unnamed: 2\n1,2,\n3,4,\n", "ab", [[1, 2], [3, 4]], "'Unnamed: 2'"),
    "numbers without a name": ("d.csv", "Unnamed: 1,a,Unnamed: 2\n1,2,5\n3,4,6\n", ("Unnamed: 1", "a", "Unnamed: 2"), [[1, 2, 5], [3, 4, 6]], None),
    # bytes
    "UTF-16": ("d.csv", "größe\t毛\n1\t2\n3\t4\n".encode("utf-16"), ("größe", "毛"), [[1, 2], [3, 4]], None),
    "UTF-16 without a mark": ("d.csv", "a,b\n1,2\n3,4\n".encode("utf-16-le"), "ab", [[1, 2], [3, 4]], None),
    "Latin-1": ("d.csv", f"größe;b\n1{NBSP}000;2\n3;4\n".encode("latin-1"), ("größe", "b"), [[1000, 2], [3, 4]], "Windows-1252"),
    "gzip": ("d.csv.gz", gzip.compress(b"a;b\n1,5;2\n3;4\n"), "ab", [[1.5, 2], [3, 4]], None),
    "gzip of tabs": ("D.TSV.GZ", gzip.compress(b"a\tb\n1\t2\n3\t4\n"), "ab", [[1, 2], [3, 4]], None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected", "said"), RIGHT.values(), ids=RIGHT
)
def test_files_that_people_have(tmp_path, name, content, columns, expected, said):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        table = read(path, text=["x"])
    assert table.columns == tuple(columns)
    assert table.values.tolist() == expected
    messages = " | ".join(str(warning.message) for warning in seen)
    assert said in messages if said else not messages
    assert all(warning.filename == __file__ for warning in seen)


# name, content, where, what is held, what to do
WRONG = {
    "thousands or decimals": ("d.csv", 'a,b\n5,6\n"1,234",2\n', "line 3 (row 2): column 'a'", "'1,234'", "point"),
    "two decimal marks": ("d.csv", "a;b\n1,5;2,5\n3,5;4.5\n", "line 3 (row 2): column 'b'", "'4.5'", "one way"),
    "Indian": ("d.csv", 'a,b\n1.5,2\n"12,34,567",2\n', "line 3 (row 2): column 'a'", "'12,34,567'", "thousands"),
    "Arabic digits": ("d.csv", "a,b\n١,٢\n٣,٤\n", "line 2 (row 1): column 'a'", "'١'", "digits 0 to 9"),
    "true among numbers": ("d.csv", "a,b\n1.5,2\ntrue,3\n", "line 3 (row 2): column 'a'", "'true'", "1 and 0"),
    "percent": ("d.csv", "a,b\n5%,2\n6%,3\n", "line 2 (row 1): column 'a'", "'5%'", "number alone"),
    "price": ("d.csv", 'a,b\n7,2\n"$1,200.50",3\n', "line 3 (row 2): column 'a'", "'$1,200.50'", "number alone"),
    "unquoted decimal commas": ("d.csv", "a,b\n1,5,2,5\n3,5,4,5\n", "line 2 (row 1)", "4 cells for 2", "decimal comma"),
    "unquoted thousands": ("d.csv", "a,b\n999,1\n1,000,2\n", "line 3 (row 2)", "3 cells for 2", "quote"),
    "title": ("d.csv", "My data\na,b\n1,2\n3,4\n", "line 2 (row 1)", "2 cells for 1 column", "title"),
    "one name for two cells": ("d.csv", "a\n1,5\n2\n3,5\n", "line 2 (row 1)", "2 cells for 1 column", "decimal comma"),
    "a name too few": ("d.csv", "a,b\nx,1,5\ny,2,5\n", "line 2 (row 1)", "3 cells for 2", "complete"),
    "a name too few in quotes": ("d.csv", '"a","b"\n"1","5","7"\n"2","5","8"\n', "line 2 (row 1)", "3 cells for 2", "complete"),
    "names of a few rows": ("d.txt", '"a" "b"\n"1" 234 567\n345 678\n', "line 2 (row 1)", "3 cells for 2", "complete"),
    "R's, one column": ("d.txt", '"a"\n"1" 234\n"2" 345\n', "line 2 (row 1)", "2 cells for 1", "name every"),
    "comment and blank before": ("d.csv", "# c\n\na,b\n1,2\n# d\n\n3,x\n", "line 7 (row 2): column 'b'", "'x'", "remove"),
    "break in quotes before": ("d.csv", 'a,"b\nc"\n"1",2\n3,"4\n"\n', "line 4 (row 2): column 'b\\nc'", "'4\\n'", "remove"),
    "old Mac": ("d.csv", "a,b\r1,2\r\r3,x\r", "line 4 (row 2): column 'b'", "'x'", "remove"),
    "error of Excel": ("d.csv", "a,b\n1,2\n#N/A,3\n#DIV/0!,4\n", "line 3 (row 2): column 'a'", "'#N/A'", "remove"),
    "a row of separators": ("d.csv", "a;b\n1;2\n3;4\n;\n", "line 4 (row 3): column 'a'", "empty cell", "remove"),
    "hexadecimal": ("d.csv", "a,b\n1,2\n0x1F,3\n", "line 3 (row 2): column 'a'", "'0x1F'", "remove"),
    "Fortran": ("d.csv", "a,b\n1,2\n1.5D+03,3\n", "line 3 (row 2): column 'a'", "'1.5D+03'", "remove"),
    "unnamed with content": ("d.csv", "a,,b\n1,5,2\n3,6,4\n", "line 1", "column 2 has no name", "name it"),
    "dates": ("d.csv", "day,x\n1.5.2020,2\n2.5.2020,3\n", "line 2 (row 1)", "'day'", "remove"),
    "open quote": ("d.csv", 'a,b\n1,2\n3,"4\n5,6\n', "line 3 (row 2): column 'b'", "'4\\n5,6\\n'", "remove"),
    "quote in a cell": ("d.csv", '"a ""b""",c\n1,2\n3,"4"5\n', "line 3", "quote", "double it"),
    "odd separator": ("d.csv", "sep=^\na^b\n1^2\n", "line 1", "'^'", "comma"),
    "NUL": ("d.csv", b"a,b\n1,2\n3,\0\n", "d.csv", "not text", "UTF-8"),
    "neither": ("d.csv", b"\xff\xfea", "d.csv", "not text", "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", *("abc")), WRONG.values(), ids=WRONG)
def test_files_that_are_refused(tmp_path, name, content, a, b, c):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check_refused(path, a, b, c)


def check_refused(path, *words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read(path)
    message = str(error.value)
    assert str(path) in message
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def npy(header, data=b"", version=b"\x01\x00"):
    """An .npy file with a header of any text."""
    text = header.encode() if isinstance(header, str) else header
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


def described(shape, descr="'<f8'", fortran="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"


def npz(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def encrypted(content):
    """The flag of a password in both headers of a zip archive."""
    content = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    return bytes(content)


GOOD = npy(described((2, 3)), np.arange(6.0).tobytes())
ARRAYS = {
    "no rows, 1e11 columns": (npy(described((0, 10**11))), "0 rows"),
    "two rows, 1e11 columns": (npy(described((2, 10**11))), "100,000,000,000 columns"),
    "1e12 rows": (npy(described((10**12, 2))), "GB of memory"),
    "1e7 rows that are not there": (npy(described((10**7, 2))), "cut short"),
    "1e30 rows": (npy(described((10**30, 1))), "memory"),
    "negative": (npy(described((-1, 2))), "damaged"),
    "lengths that are no numbers": (npy(described("('a', 2)")), "damaged"),
    "True rows": (npy(described("(True, 2)"), bytes(16)), "damaged"),
    "many dimensions": (npy(described((1,) * 40), bytes(8)), "(rows, columns)"),
    "rest after the array": (GOOD + bytes(8), "one array"),
    "cut": (GOOD[:-1], "cut short"),
    "no header": (b"\x93NUMPY", "cut short"),
    "other version": (npy(described((2, 3)), bytes(48), b"\x09\x00"), "damaged"),
    "header of code": (npy("__import__('os').system('true')\n"), "damaged"),
    "header of brackets": (npy("(" * 9000), "damaged"),
    "header of a number": (npy("1\n"), "damaged"),
    "header of bytes": (npy(b"\xff\x00{" * 20), "damaged"),
    "long header": (npy(described((2, 3)) + " " * 20_000, bytes(48)), "damaged"),
    "other keys": (npy("{'descr': '<f8'}"), "damaged"),
    "unknown type": (npy(described((2, 3), "'<q9'"), bytes(48)), "damaged"),
    "objects": (npy(described((2,), "'|O'"), b"\x80\x04N."), "Python objects"),
    "objects in records": (npy(described((2,), "[('a', '|O')]"), b"\x80\x04N."), "Python objects"),
    "records": (npy(described((2,), "[('a', '<f8')]"), bytes(16)), "real numbers"),
    "dates": (npy(described((2,), "'<M8[s]'"), bytes(16)), "real numbers"),
}  # fmt: skip
ARCHIVES = {
    "text member": (npz({"readme.txt": b"hello"}), "holds no arrays"),
    "member that is no array": (npz({"a.npy": b"hello"}), "damaged"),
    "bytes changed": (npz({"a.npy": GOOD}, zipfile.ZIP_STORED).replace(bytes(8), b"12345678", 1), "damaged"),
    "password": (encrypted(npz({"a.npy": GOOD})), "damaged"),
    "rows that are not there": (npz({"a.npy": npy(described((10**6, 2)))}), "cut short"),
}  # fmt: skip


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_LINE", 1000)
    (tmp_path / "d.csv").write_text("a,b\n" + "1," * 1000)
    check_refused(tmp_path / "d.csv", "line 2", "more than 1,000 bytes", "each row")


@pytest.mark.parametrize(("content", "word"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_are_refused(tmp_path, content, word):
    (tmp_path / "d.npy").write_bytes(content)
    check_refused(tmp_path / "d.npy", word)
    (tmp_path / "d.npz").write_bytes(npz({"a.npy": content}))
    check_refused(tmp_path / "d.npz", word)


@pytest.mark.parametrize(("content", "word"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_are_refused(tmp_path, content, word):
    (tmp_path / "d.npz").write_bytes(content)
    check_refused(tmp_path / "d.npz", word)


def test_what_unpacks_to_far_more_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACKED", 1 << 20)
    zeros = npy(described((10**6, 2)), bytes(16 * 10**6))
    (tmp_path / "d.npz").write_bytes(npz({"a.npy": zeros}))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,1\n" * 4_000_000))
    for name in ("d.npz", "d.csv.gz"):
        tracemalloc.start()
        check_refused(tmp_path / name, "without compression")
        assert tracemalloc.get_traced_memory()[1] < 10e6
        tracemalloc.stop()


def test_rows_that_take_no_room_in_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACKED", 1 << 20)
    parquet.write_table(pa.table({"a": np.ones(3_000_000)}), tmp_path / "d.parquet")
    check_refused(tmp_path / "d.parquet", "without compression")


@pytest.mark.parametrize("name", ["d.npy", "d.csv", "d.parquet"])
def test_what_is_larger_than_the_memory_is_refused(tmp_path, monkeypatch, name):
    rows = np.ones((1000, 3))
    if name == "d.npy":
        np.save(tmp_path / name, rows)
    elif name == "d.csv":
        np.savetxt(tmp_path / name, rows, delimiter=",")
    else:
        parquet.write_table(pa.table({"a": rows[:, 0]}), tmp_path / name)
    monkeypatch.setattr(sources, "physical_memory", lambda: 7000)
    check_refused(tmp_path / name, "memory")


KINDS = {
    "csv": b"a,b\n1,2\n3,4\n",
    "npy": GOOD,
    "npz": npz({"a.npy": GOOD}),
    "csv.gz": gzip.compress(b"a,b\n1,2\n3,4\n"),
    "parquet": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_refused_and_the_extension_named(tmp_path, kind):
    for extension in (*KINDS, "tsv", "txt.gz"):
        path = tmp_path / f"d.{extension}"
        if kind == "parquet":
            parquet.write_table(pa.table({"a": [1, 2]}), path)
        else:
            path.write_bytes(KINDS[kind])
        if kind.rpartition(".")[2] in (extension.rpartition(".")[2], {"tsv": "csv"}.get(extension)):
            assert len(read(path).values) == 2
        else:
            check_refused(path, "extension")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "empty.csv.gz").write_bytes(gzip.compress(b""))
    with open(tmp_path / "holes.csv", "wb") as file:
        file.truncate(1 << 30)
    words = ("pipe or a device", "pipe or a device", "folder", "no file", "empty", "not text")
    names = ("pipe.csv", "device.csv", "folder.csv", "loop.csv", "empty.csv.gz", "holes.csv")
    for name, word in zip(names, words, strict=True):
        check_refused(tmp_path / name, word)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("hidden", ["d.csv", "."])
def test_what_must_not_be_read_is_one_line(tmp_path, hidden):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "d.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / hidden).chmod(0)
    try:
        check_refused(folder / "d.csv", "Permission denied")
    finally:
        folder.chmod(0o700)


def test_parquet_leaves_out_the_index_of_pandas(tmp_path):
    columns = {"Unnamed: 0": [0, 1], "a": [1.5, 2.5], "__index_level_0__": ["x", "y"]}
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.warns(UserWarning, match="left out.*'Unnamed: 0', '__index_level_0__'"):
        table = read(tmp_path / "d.parquet")
    assert (table.columns, table.values.tolist()) == (("a",), [[1.5], [2.5]])


@pytest.mark.parametrize("name", ["d.parquet", "d.csv"])
def test_an_index_that_is_asked_for_is_kept(tmp_path, name):
    if name == "d.csv":
        (tmp_path / name).write_text("Unnamed: 0,a\n3,1.5\n4,2.5\n")
    else:
        parquet.write_table(pa.table({"Unnamed: 0": [3, 4], "a": [1.5, 2.5]}), tmp_path / name)
    assert read(tmp_path / name, text=["Unnamed: 0"]).values.tolist() == [[3, 1.5], [4, 2.5]]


def test_a_row_may_be_longer_than_a_block(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((3, 100)) * 1e-100
    header = ",".join(f"column {k}" for k in range(100))
    np.savetxt(tmp_path / "d.csv", rows, delimiter=",", header=header, comments="", fmt="%.17g")
    monkeypatch.setattr(delimited, "_BLOCK", 512)
    table = read(tmp_path / "d.csv")
    assert table.columns[-1] == "column 99"
    np.testing.assert_array_equal(table.values, rows)


@pytest.mark.parametrize(
    ("last", "value", "said"), [("1.234,5", 1234.5, "1234.5"), ('" 2,5"', 2.5, None)]
)
def test_a_notation_is_that_of_the_whole_file(tmp_path, last, value, said):
    lines = ["a;b", *(f"{k},5;{k}" for k in range(1000)), f"{last};7"]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        values = read(tmp_path / "d.csv").values
    np.testing.assert_array_equal(values[:-1], np.arange(1000)[:, None] + [0.5, 0])
    assert values[-1].tolist() == [value, 7]
    assert [said in str(warning.message) for warning in seen] == [True] * (said is not None)


def test_another_notation_far_down_is_refused(tmp_path):
    lines = ["a;b", *(f"{k},5;{k}" for k in range(1000)), "1.5;7"]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    check_refused(tmp_path / "d.csv", "line 1002 (row 1001): column 'a' holds '1.5'", "one way")


def test_the_line_of_a_cell_far_down(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 512)
    lines = ["# comment", "a;b", *(f"{k},5;{k}" for k in range(2000))]
    lines[1501] = "1,5;x"
    (tmp_path / "d.csv").write_text("\n\n".join(lines))
    check_refused(tmp_path / "d.csv", "line 3003 (row 1500)", "'b' holds 'x'")
