"""What a spreadsheet makes of a CSV."""

import csv

import pytest

from saucer.lib.csv_lines import csv_line


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx"])
def test_a_text_that_begins_like_a_formula_is_shown_as_text(text: str) -> None:
    assert list(csv.reader([csv_line((text,))])) == [[f"'{text}"]]


@pytest.mark.parametrize("value", ["cup", "a=b", "a, b", 'say "a"', "'a", "", -1, -0.5])
def test_anything_else_is_read_back_as_it_was(value: object) -> None:
    assert list(csv.reader([csv_line((value, "end"))])) == [[str(value), "end"]]
