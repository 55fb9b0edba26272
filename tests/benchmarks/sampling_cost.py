"""What head and late rules cost for each request, in one process: the table of docs/sampling.md.

python -m tests.benchmarks.sampling_cost            tells the table
python -m tests.benchmarks.sampling_cost --write    and puts it on the page
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import otel_perf
from otel_perf import instrument, measure
from tests.benchmarks.asgi import KINDS, cpu_per_request_us, request
from tests.benchmarks.counting import count_async
from tests.benchmarks.scenarios import Ready

__all__ = ["MARKS", "PAGE", "VARIANTS", "table"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sampling.md"
MARKS = ("<!-- costs -->\n", "<!-- /costs -->\n")

#: What it is called, and the settings; None is the app alone.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "not measured": None,
    "sampled": {},
    "unsampled": {"sampler": "parentbased_always_off"},
    "head rule says 1": {"sampler": "parentbased_always_off", "sample_rules": ["/items/*=1"]},
    "head rule says 0": {"sample_rules": ["/items/*=0"]},
    "late rule, sampled before": {"keep_errors": True},
    "late rule keeps it": {"sampler": "parentbased_always_off", "keep_routes": ["/items/*"]},
    "late rule lets it go": {"sampler": "parentbased_always_off", "keep_errors": True},
}
_STEPS = 3
_ROUNDS = 5
_REQUESTS = 1000


def _app(steps: int) -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/items/{item}")
    async def idle(item: str) -> dict[str, bool]:
        for _ in range(steps):
            with measure("step"):
                pass
        return {"ok": True}

    return app


async def _measured(settings: dict[str, Any] | None, steps: int, endpoint: str) -> tuple[int, float]:
    """Calls of one request, and its CPU time in us, the export included."""
    app, kind = _app(steps), KINDS["plain"]
    if settings is None:  # before the first `configure`: FastAPI measures itself once there is a provider
        ready = Ready(lambda _: None, lambda: None, lambda: None)
    else:
        otel_perf.configure(service_name="cost", endpoint=endpoint, **settings)
        instrument(app)
        ready = Ready(lambda _: None, otel_perf.flush, otel_perf.flush)
    try:
        calls = await count_async(lambda: request(app, kind), 60)
        return calls.usual, await cpu_per_request_us(app, ready, kind, _REQUESTS)
    finally:
        otel_perf.shutdown()


def _rows(endpoint: str) -> dict[tuple[str, int], tuple[int, float]]:
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    alone = next(iter(VARIANTS))
    for names in ([alone], [each for each in VARIANTS if each != alone]):
        for _ in range(_ROUNDS):
            for name in names:
                for steps in (0, _STEPS):
                    made = asyncio.run(_measured(VARIANTS[name], steps, endpoint))
                    found.setdefault((name, steps), []).append(made)
    return {
        key: (statistics.mode(calls for calls, _ in each), statistics.median(us for _, us in each))
        for key, each in found.items()
    }


def table(rows: dict[tuple[str, int], tuple[int, float]]) -> str:
    """The table in Markdown; each column is what is added to the app alone."""
    head = f"calls | us | calls, {_STEPS} steps within | us, {_STEPS} steps within"
    lines = [f"| request | {head} |", "|---|---|---|---|---|"]
    first = next(iter(VARIANTS))
    for name in list(VARIANTS)[1:]:
        cells = []
        for steps in (0, _STEPS):
            (calls, us), (calls_alone, us_alone) = rows[name, steps], rows[first, steps]
            cells += [f"{calls - calls_alone}", f"{us - us_alone:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, tells, and writes where that is asked for."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.sink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sink:
        assert sink.stdout is not None
        made = table(_rows(f"http://127.0.0.1:{int(sink.stdout.readline())}/cost"))
        assert sink.stdin is not None
        sink.stdin.close()
    print(made)
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        PAGE.write_text(before + MARKS[0] + made + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


if __name__ == "__main__":
    main()
