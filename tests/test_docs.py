"""The pages tell the truth: what they mark as runnable runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel_perf import catalogue, conventions, guard, jobs, strategy

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {page.relative_to(ROOT).as_posix(): page for page in PAGES if _BLOCK.search(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", RUN)
def test_a_page_runs(telemetry, monkeypatch, name):
    """The blocks of a page run in their order, as one program, without a fault."""
    monkeypatch.setattr(conventions, "_declared", dict(conventions._declared))
    monkeypatch.setattr(catalogue, "_observed", [])
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(strategy, "_strategies", {})
    page = RUN[name].read_text(encoding="utf-8")
    program: dict[str, object] = {"__name__": "page"}
    for block in _BLOCK.finditer(page):
        before = page.count("\n", 0, block.start(1))
        exec(compile("\n" * before + block[1], RUN[name], "exec"), program)
    assert guard.errors == 0


def test_the_pages_that_run():
    """These pages have runnable blocks, and every mark has a block behind it."""
    assert {"docs/measure.md", "docs/catalogue.md"} <= RUN.keys()
    for name, page in RUN.items():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- run -->") == len(_BLOCK.findall(text)), name
