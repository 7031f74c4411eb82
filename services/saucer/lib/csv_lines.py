"""CSV that a spreadsheet shows as it is, and never runs."""

import csv
import io
from collections.abc import Iterable

# With these a spreadsheet takes a cell for a formula (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_line(values: Iterable[object]) -> str:
    """With its line end. A text that begins like a formula has `'` before it; numbers stay as they are."""
    line = io.StringIO()
    csv.writer(line).writerow(map(_harmless, values))
    return line.getvalue()


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
