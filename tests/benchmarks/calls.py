"""Python calls that otel_perf adds, exactly: `python -m tests.benchmarks.calls`, in any environment that has otel_perf.

calls.json keeps what they are on each Python, and a test compares. After a change that means to alter them run
`python -m tests.benchmarks.calls --write` and look at the difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Results
from tests.benchmarks.measuring import VARIANTS, Plan, run
from tests.benchmarks.processes import Started

__all__ = ["KEPT", "counts", "kept", "python"]

KEPT = Path(__file__).absolute().with_name("calls.json")
_NAMES = {
    "5 routes": "calls_5_routes",
    "200 routes": "calls_200_routes",
    "query": "calls_with_query",
    "context": "calls_full_context",
}


def python() -> str:
    """The key of this interpreter: counts differ between minor versions, since each inlines more."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def kept() -> dict[str, Any]:
    """What calls.json holds."""
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def counted() -> Results:
    """Counts with and without otel_perf, each in a process of its own."""
    return run(Plan(calls=("bare", "ours", "ours_unsampled"), rest=True, rounds=0, memory=()))


def counts(results: Results) -> dict[str, int]:
    """What is added, by name.

    Raises:
        RuntimeError: when something could not be counted.
    """
    if results.failed:
        raise RuntimeError(f"could not be counted: {results.failed}")
    added = {name: results.count("ours", variant) - results.count("bare", variant) for variant, name in _NAMES.items()}
    added["calls_unsampled"] = results.count("ours_unsampled", "5 routes") - results.count("bare", "5 routes")
    for name in sorted({name for name, _ in results.subjects}):
        added[name] = results.subjects[name, True]["usual"] - results.subjects[name, False]["usual"]
    return added


def _write(found: dict[str, int]) -> None:
    data = kept()
    data["counts"] = dict(sorted({**data["counts"], python(): found}.items(), key=lambda pair: _order(pair[0])))
    KEPT.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(f"written to {KEPT.name} for Python {python()}", file=sys.stderr)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))


def _list_names(variant: str) -> None:
    kind, routes = VARIANTS[variant]
    with Started() as started:
        asked = {name: started.child(name).ask("names", kind=kind, routes=routes) for name in ("bare", "ours")}
    without = list(asked["bare"])
    for name in asked["ours"]:
        # What the bare app calls too is marked by a space, so that what is added stands out.
        known = name in without
        if known:
            without.remove(name)
        print(f"{' ' if known else '+'} {name}")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.calls", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep the counts in calls.json for this Python")
    parser.add_argument(
        "--names", nargs="?", const="5 routes", choices=VARIANTS, metavar="VARIANT",
        help=f"list the functions that one request calls, added ones with +; one of: {', '.join(VARIANTS)}",
    )  # fmt: skip
    asked = parser.parse_args()
    if asked.names:
        _list_names(asked.names)
        return
    found = counts(counted())
    print(json.dumps(found, indent=2))
    if asked.write:
        _write(found)


if __name__ == "__main__":
    main()
