"""What every benchmark shares: A B A B, medians, rows of a table, JSON."""

import json
import math
import operator
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

# A median of fewer says little on a shared machine.
LEAST_ROUNDS = 5
_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}

Measure = Callable[[], Awaitable[float]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line: `ratio` is ours ÷ reference, `goal` a comparison with it, as `>= 0.80`."""

    name: str
    ours: float
    reference: float
    unit: str
    ratio: float
    goal: str

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the goal."""
        sign, bound = self.goal.split()
        return _COMPARE[sign](self.ratio, float(bound))


async def compare(
    name: str, unit: str, goal: str, *, ours: Measure, reference: Measure, say: Say, rounds: int = LEAST_ROUNDS
) -> Row:
    """Measures in turns and takes the medians. The ratio is that of the medians."""
    ours_measured: list[float] = []
    reference_measured: list[float] = []
    for number in range(1, rounds + 1):
        ours_measured.append(await ours())
        reference_measured.append(await reference())
        say(f"{name} {number}/{rounds}: {ours_measured[-1]:.4g} against {reference_measured[-1]:.4g} {unit}")
    return row(name, unit, goal, ours_measured, reference_measured)


def row(name: str, unit: str, goal: str, ours: Sequence[float], reference: Sequence[float]) -> Row:
    """Of measurements made in turns. Raises ValueError for fewer than LEAST_ROUNDS of each."""
    if min(len(ours), len(reference)) < LEAST_ROUNDS:
        raise ValueError(f"{name}: a median needs {LEAST_ROUNDS} rounds of each.")
    middle, reference_middle = statistics.median(ours), statistics.median(reference)
    return Row(name, middle, reference_middle, unit, middle / reference_middle, goal)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the least value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def write(rows: Sequence[Row], file: Path) -> None:
    """As JSON: a list of objects."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON has no infinity: a row that failed has no ratio.
    lines = [asdict(line) | {"ratio": line.ratio if math.isfinite(line.ratio) else None} for line in rows]
    file.write_text(json.dumps(lines, indent=2) + "\n")


def told(line: Row) -> str:
    """In one line of text."""
    missed = "" if line.met else ", missed"
    return (
        f"{line.name}: {line.ours:.4g} against {line.reference:.4g} {line.unit}, {line.ratio:.3f} ({line.goal}{missed})"
    )


def show(bench: str, rows: Sequence[Row], console: Console) -> None:
    """As a table; a missed goal says so."""
    table = Table(title=bench, title_justify="left")
    for heading in ("name", "ours", "reference", "unit", "ratio", "goal", ""):
        table.add_column(heading, justify="right" if heading in {"ours", "reference", "ratio"} else "left")
    for line in rows:
        figures = (f"{line.ours:.4g}", f"{line.reference:.4g}", line.unit, f"{line.ratio:.3f}")
        table.add_row(line.name, *figures, line.goal, "" if line.met else "[red]missed[/red]")
    console.print(table)
