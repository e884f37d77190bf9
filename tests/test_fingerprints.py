import numpy as np

from flowmlx.files.fingerprints import fingerprint

ROWS = np.arange(6.0).reshape(3, 2)


def test_values_are_those_that_run_folders_hold():
    assert fingerprint("('a', 'b')", ROWS) == "2f90e043c7056b62999b5c4df573805c"
    assert fingerprint(ROWS, ROWS.astype(np.float32)) == "564b54f785ab591065829ce8f93a4fc7"


def test_order_of_the_rows_counts_and_their_place_in_memory_does_not():
    assert fingerprint(np.asfortranarray(ROWS)) == fingerprint(ROWS)
    assert fingerprint(ROWS[::-1]) != fingerprint(ROWS)
    assert fingerprint(repr(ROWS.shape), ROWS) != fingerprint(repr((2, 3)), ROWS.reshape(2, 3))
