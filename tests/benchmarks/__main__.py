"""`make bench`: what otel_perf costs, beside its peers."""

from __future__ import annotations

import argparse
import difflib
import json
import signal
import sys
from typing import Any

from tests.benchmarks import measuring, report
from tests.benchmarks.figures import FIGURES

_ABOUT = """\
Measures otel_perf and its peers in one run and tells the figures with their targets.
Each scenario has a process of its own; rounds go through all of them in turn, and medians are told.
Everything runs on loopback and stops by itself; the default run takes about eleven minutes, six
without the streak service's."""

_EXAMPLES = """\
examples:
  make bench                                    everything, as tables
  make bench ARGS="--only cpu_vs_stock"         one figure and no more than it needs
  make bench ARGS="--quick --json"              shorter; the last line is one JSON object
  make bench ARGS="--write"                     everything, and the tables of docs/performance.md anew
  python -m tests.benchmarks.calls              Python calls only, exactly, in any environment that has otel_perf
  python -m tests.benchmarks.calls --names      the functions that one request calls

Keep the machine quiet meanwhile: ratios hold on a busy one, spreads grow."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "make bench", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="this figure; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: for a first look")
    parser.add_argument(
        "--instructions", action="store_true",
        help="count instructions too, by perf or valgrind where they are: exact, and minutes more",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument(
        "--write", action="store_true",
        help="put the tables on docs/performance.md; instructions are counted too, so that all is of one run",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the figures and their targets, and measure nothing")
    return parser


def _checked(names: list[str], parser: argparse.ArgumentParser) -> list[str]:
    for name in names:
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, 1, 0.4)
            meant = f"did you mean {near[0]!r}?" if near else "--list names them all"
            parser.error(f"there is no figure {name!r}: {meant}")
    return names


def _listed() -> None:
    for figure in FIGURES.values():
        sense = ">=" if figure.at_least else "<="
        print(f"{figure.name:<30} {sense} {figure.target:<8.4g} {figure.about}")


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs the command; 0 when it ran, whether or not targets are met, 130 when it was interrupted."""
    parser = _parser()
    asked = parser.parse_args()
    names = _checked(asked.only or list(FIGURES), parser)
    if asked.list:
        _listed()
        return 0
    if asked.write and (asked.only or asked.quick):
        parser.error("--write wants the whole run: leave out --only and --quick")
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        results = measuring.run(
            measuring.plan(names, quick=asked.quick, instructions=asked.instructions or asked.write)
        )
    except KeyboardInterrupt:
        print("interrupted; everything that was started has ended", file=sys.stderr)
        return 130
    made = report.tables(results, names)
    for name, body in made.items():
        print(f"\n{name}:\n{body}")
    if asked.write:
        report.write(made)
    if asked.json:
        print(json.dumps(report.as_json(results, names)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
