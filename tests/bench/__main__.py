"""Runs all benchmarks, or the one that is named: `python -m tests.bench [BENCH]`. A missed goal is said, no failure."""

import asyncio
import importlib
import pkgutil
import sys
from pathlib import Path

from rich.console import Console

import tests.bench
from tests.bench.harness import show, write

RESULTS = Path(".saucer") / "bench"
# Of this package, what is no benchmark.
SHARED = {"__main__", "harness"}


def benches() -> list[str]:
    """Every module here with a coroutine `measure(say) -> list[Row]`."""
    names = (module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.ispkg)
    return [name for name in names if name not in SHARED and not name.startswith("_")]


def main(arguments: list[str]) -> None:
    """Measures, prints and writes."""
    known = benches()
    if unknown := set(arguments) - set(known):
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    console = Console(highlight=False)
    missed = []
    for name in arguments or known:
        bench = importlib.import_module(f"tests.bench.{name}")
        rows = asyncio.run(bench.measure(lambda text: console.print(text, style="dim")))
        show(name, rows, console)
        write(rows, RESULTS / f"{name}.json")
        missed += [row.name for row in rows if not row.met]
    console.print(f"Goals missed: {', '.join(missed)}." if missed else "Every goal is met.")


if __name__ == "__main__":
    main(sys.argv[1:])
