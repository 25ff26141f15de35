"""`make bench-quick REV=…`: two revisions side by side, in turns, so that a change can be judged in two minutes."""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.load.routes import ROUTES, Load, Members, measure
from benchmarks.load.stack import ROOT, stack
from benchmarks.load.table import table
from dev.embedded import stop_on_signals

ROUNDS = 4
RUN_SECONDS = 2
POOL = 15_000
FIGURES = {"CPU": "cpu", "service": "service", "PostgreSQL": "postgresql", "per second": "per_second", "p99": "p99"}


def main() -> None:
    """Print the ratios of medians, new to old; below 1 the new one is the cheaper."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("old", help="a revision of git")
    arguments.add_argument("new", nargs="?", default="HEAD", help="another; HEAD when left out")
    options = arguments.parse_args()
    stop_on_signals()
    with ExitStack() as running:
        # Both run at once; the one that is not measured has nothing to do.
        stacks = [running.enter_context(stack(running.enter_context(_worktree(r)))) for r in (options.old, options.new)]
        members = [Members(one, POOL) for one in stacks]
        rows = []
        for route in ROUTES:
            loads: tuple[list[Load], list[Load]] = ([], [])
            for round_ in range(ROUNDS):
                for side in (0, 1) if round_ % 2 == 0 else (1, 0):
                    loads[side].append(measure(stacks[side], members[side], route, RUN_SECONDS))
            rows.append([route.name, *(_compare(loads, figure) for figure in FIGURES.values())])
            print(f"{route.name} done", file=sys.stderr, flush=True)
    print(table([f"{options.new} to {options.old}", *FIGURES], rows))


def _compare(loads: tuple[list[Load], list[Load]], figure: str) -> str:
    old, new = (statistics.median(getattr(load, figure) for load in side) for side in loads)
    return f"{new / old:.2f} ({old:.3g} → {new:.3g})"


@contextmanager
def _worktree(revision: str) -> Iterator[Path]:
    """Check a revision out into a folder of its own. It runs in the present virtual environment."""
    with tempfile.TemporaryDirectory(prefix="bench-quick-") as folder:
        path = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", path, revision], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
