import json
import re

import numpy as np
import pytest

from flowmlx.data.arrays import Table
from flowmlx.data.conditions import MOST_CLASSES, ConditionColumns

SPECIES = ("setosa", "versicolor", "virginica")
TEXT = Table(("species",), np.array([[2.0], [0], [1], [2]]), {"species": SPECIES})
WHOLE = Table(("kind",), np.array([[7.0], [-1], [4], [7]]))
NUMBERS = Table(("a", "b"), np.array([[0.0, 10], [2, 30]]))


def saved(columns):
    """As a run keeps it."""
    return ConditionColumns.from_dict(json.loads(json.dumps(columns.to_dict())))


@pytest.mark.parametrize(
    ("table", "size", "encoded", "words"),
    [
        (TEXT, 3, [2, 0, 1, 2], {"setosa": 0, " virginica ": 2}),
        (WHOLE, 3, [2, 0, 1, 2], {"-1": 0, "7.0": 2}),
        (NUMBERS, 2, [[-1, -1], [1, 1]], {"2,10": [1, -1]}),
    ],
    ids=["text", "whole numbers", "numbers"],
)
def test_columns_are_encoded_as_words_are_and_come_back_from_json(table, size, encoded, words):
    fitted = ConditionColumns.fit(table)
    for columns in (fitted, saved(fitted)):
        assert columns.size == size
        np.testing.assert_array_equal(columns.encode(table.values), encoded)
        for word, value in words.items():
            np.testing.assert_array_equal(columns.parse(word), value)


def test_a_text_may_hold_commas():
    fitted = ConditionColumns.fit(TEXT._replace(labels={"species": ("a, b", "c", "d")}))
    assert fitted.parse("a, b").item() == 0


@pytest.mark.parametrize(
    ("table", "word", "message"),
    [
        (
            TEXT,
            "virginia",
            "'virginia' (did you mean 'virginica'?); species was one of: 'setosa', 'versicolor'",
        ),
        (TEXT, "2", "--condition is '2'; species was one of: 'setosa'"),
        (TEXT, "", "--condition is ''; species was one of: 'setosa'"),
        (WHOLE, "5", "--condition is 5; kind was one of: -1, 4, 7"),
        (WHOLE, "red", "--condition is 'red'; expected a number for kind"),
        (NUMBERS, "1", "--condition is '1'; expected a number for a, b, separated by commas"),
    ],
)
def test_what_is_not_a_condition_is_refused(table, word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConditionColumns.fit(table).parse(word)


def test_text_that_cannot_be_classes_is_refused():
    many = Table(("name",), np.zeros((2, 1)), {"name": tuple(map(str, range(MOST_CLASSES + 1)))})
    with pytest.raises(ValueError, match="'name' holds 101 different texts; expected 2 to 100"):
        ConditionColumns.fit(many)
    one = TEXT._replace(labels={"species": ("setosa",)})
    with pytest.raises(ValueError, match="'species' holds 1 different text; expected 2 to 100"):
        ConditionColumns.fit(one)
    several = Table(("kind", "species"), np.zeros((2, 2)), TEXT.labels)
    message = "'species' holds text, which has to be the only condition; leave out 'kind', or enc"
    with pytest.raises(ValueError, match=re.escape(message)):
        ConditionColumns.fit(several)
