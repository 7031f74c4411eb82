"""Changes one operator, number or word of billing at a time, and says which changes no test notices.

`make mutants` takes a sample; `--all` takes every mutant, for hours. Python is changed by its tokens, SQL (in store/
and in the views and functions of schema/) by its words. A library would do the first half; none does the second, so
both are done alike here.
"""

import argparse
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).parents[2]
BILLING = Path("services/saucer/billing")
PYTHON = ("ledger.py", "metering.py", "prepaid.py", "domain.py", "explaining.py", "../lib/money.py")
SQL = ("store/*.py", "schema/*.sql")
# The first failure ends a mutant, so the fastest come first, and races many times over are left out.
TESTS = (
    "unit/billing",
    *(
        f"integration/billing/test_{name}.py"
        for name in (
            "sound_rows",
            "audit",
            "offers",
            "quotas",
            "lists",
            "accounts",
            "closing",
            "running_out",
            "statements",
            "ledger",
            "prepaid",
            "budgets",
            "histories",
        )
    ),
)
LEFT_OUT = "not 64_callers and not asked_for_at_once and not lost_before"
# A mutant that makes tests wait for ever counts as noticed.
TIME_LIMIT_S = 600
GOAL = 0.9

WORDS = {
    "+": "-",
    "-": "+",
    "*": "+",
    "//": "*",
    "%": "//",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "and": "or",
    "or": "and",
    "min": "max",
    "max": "min",
    "is": "is not",
    "True": "False",
    "False": "True",
}
SQL_WORDS = (
    (r" <> ", " = "),
    (r" = (?=\$|[a-z]+\.)", " <> "),
    (r" < ", " <= "),
    (r" > ", " >= "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r"\bAND\b", "OR"),
    (r"\bOR\b(?! REPLACE)", "AND"),
    (r"'GRANTED'", "'RESOLVED'"),
    (r"'WAITING'", "'BURIED'"),
    (r"\bDESC\b", "ASC"),
    (r"\bFOR UPDATE\b", ""),
    (r"ON CONFLICT[^\n]*DO NOTHING", ""),
    (r"\bsum\(", "max("),
    (r"\bcoalesce\((?=[^()]*\()", "nullif("),
)


@dataclass(frozen=True)
class Mutant:
    """One change: of a file, between two offsets."""

    file: Path
    start: int
    end: int
    replacement: str

    def describe(self, text: str) -> str:
        line = text.count("\n", 0, self.start) + 1
        whole = text.splitlines()[line - 1].strip()
        change = f"{text[self.start : self.end]!r} -> {self.replacement!r}"
        return f"{self.file.relative_to(BILLING)}:{line}: {change} in {whole}"


def of_python(file: Path, text: str) -> Iterator[Mutant]:
    """By tokens, outside of strings, comments and annotations."""
    offsets = [0, *(found.end() for found in re.finditer("\n", text))]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = (offsets[row - 1] + column for row, column in (token.start, token.end))
        if token.line.startswith(("from ", "import ", "@")):
            continue
        if token.type == tokenize.NUMBER and token.string.isdigit():
            yield Mutant(file, start, end, str(int(token.string) + 1))
        elif token.type in (tokenize.OP, tokenize.NAME) and token.string in WORDS:
            yield Mutant(file, start, end, WORDS[token.string])


def of_sql(file: Path, text: str, later: str = "") -> Iterator[Mutant]:
    """By words, in statements and in those views and functions that no later file of the schema replaces."""
    for begin, statement in _statements(file, text, later):
        for pattern, replacement in SQL_WORDS:
            for found in re.finditer(pattern, statement):
                yield Mutant(file, begin + found.start(), begin + found.end(), replacement)


def _statements(file: Path, text: str, later: str) -> Iterator[tuple[int, str]]:
    if file.suffix == ".sql":
        for found in re.finditer(r"CREATE VIEW (\w+).*?;|CREATE[\w ]* FUNCTION (\w+).*?\$\$.*?\$\$", text, re.DOTALL):
            if not re.search(rf"(VIEW|FUNCTION|,)\s+{found[1] or found[2]}\b", later):
                yield found.start(), found[0]
        return
    for found in re.finditer(r'f?"""(.*?)"""|f?"([^"\n]*)"', text, re.DOTALL):
        group = 1 if found[1] is not None else 2
        if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|ORDER BY)\b", found[group]):
            yield found.start(group), found[group]


def mutants() -> list[Mutant]:
    """All of them, in order."""
    found: list[Mutant] = []
    for name in PYTHON:
        found += of_python(BILLING / name, (ROOT / BILLING / name).read_text())
    for pattern in SQL:
        files = sorted((ROOT / BILLING).glob(pattern))
        texts = [file.read_text() for file in files]
        for place, (file, text) in enumerate(zip(files, texts, strict=True), start=1):
            found += of_sql(file.relative_to(ROOT), text, "".join(texts[place:]))
    return found


def passes(tree: Path) -> bool:
    """Whether the tests do, in a tree."""
    files = [f"tests/{name}" for name in TESTS]
    # hypothesis' own profile: every mutant gets the histories that the unchanged tree has passed. A random one that
    # fails without the change, too, would count as a mutant that was noticed.
    same_histories = "--hypothesis-profile=ci"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not soak", "-k", LEFT_OUT, same_histories]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = dict(os.environ) | {"PYTHONPATH": str(tree / "services")}
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def is_noticed(tree: Path, mutant: Mutant) -> bool:
    """Runs the tests on the changed tree, and puts the file back."""
    file = tree / mutant.file
    text = file.read_text()
    file.write_text(text[: mutant.start] + mutant.replacement + text[mutant.end :])
    try:
        return not passes(tree)
    finally:
        file.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sample", type=int, default=60, help="mutants to take")
    parser.add_argument("--all", action="store_true", help="take every mutant")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    every = mutants()
    taken = every if options.all else random.Random(options.seed).sample(every, min(options.sample, len(every)))
    survivors: list[str] = []
    with tempfile.TemporaryDirectory(prefix="saucer-mutants-") as name:
        tree = Path(name)
        for part in ("services", "tests", "protos", "pyproject.toml", "constraints.txt", "triton-constraints.txt"):
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tree / part)
        if not passes(tree):
            sys.exit("The tests fail without any change.")
        for number, mutant in enumerate(track(taken, description="mutants"), start=1):
            if not is_noticed(tree, mutant):
                survivors.append(mutant.describe((ROOT / mutant.file).read_text()))
                print(f"survived ({len(survivors)} of {number}): {survivors[-1]}", flush=True)
    killed = len(taken) - len(survivors)
    share = f"{killed / len(taken):.0%}"
    print(f"{killed} of {len(taken)} mutants were noticed ({share}; {len(every)} in all, seed {options.seed})")
    sys.exit(0 if killed >= GOAL * len(taken) else 1)


main()
