"""The page's files as they are served; test_page_browser has them in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from examples.streak import page
from examples.streak.page import POLICY
from tests.streak.conftest import Start
from tests.streak.refused import assert_refused

FOLDER = Path(page.__file__).with_name("page")
SCRIPTS = ("show.js", "page.js")


class _Tags(HTMLParser):
    """Every tag with its attributes, and what stands within scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in {"script", "style"}:
            self.inline += data.strip()

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.mark.anyio
async def test_page_is_served_to_everybody(start: Start) -> None:
    """No token is needed; the policy is strict, and a copy is asked about each time."""
    async with start() as service:
        answer = await service.http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert POLICY.startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    )
    assert "unsafe" not in POLICY


@pytest.mark.anyio
async def test_files_that_the_page_refers_to(start: Start) -> None:
    """Each has its type, may be kept for a year by the version that the page names, and without it is asked about."""
    types = {
        "page.js": "text/javascript",
        "show.js": "text/javascript",
        "page.css": "text/css",
        "icon.svg": "image/svg+xml",
    }
    async with start() as service:
        text = (await service.http.get("/")).text
        found = re.findall(r'"(/page/([\w.]+)\?v=[0-9a-f]{16})"', text)
        assert {name for _, name in found} == set(types)
        for address, name in found:
            answer = await service.http.get(address)
            assert answer.headers["content-type"].partition(";")[0] == types[name]
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.content == (FOLDER / name).read_bytes()
            for other in (f"/page/{name}", f"/page/{name}?v=0"):
                assert (await service.http.get(other)).headers["cache-control"] == "no-cache"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/page/page.js"])
async def test_a_copy_that_is_the_same(start: Start, path: str) -> None:
    """Whoever has it already is told so without a body, whatever else it has; another tag gets it anew."""
    async with start() as service:
        tag = (await service.http.get(path)).headers["etag"]
        for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
            answer = await service.http.get(path, headers={"if-none-match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert (await service.http.get(path, headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.anyio
async def test_head(start: Start) -> None:
    """HEAD has the same headers as GET; nothing else is allowed."""
    async with start() as service:
        got, asked = await service.http.get("/"), await service.http.head("/")
        assert asked.status_code == 200
        assert asked.content == b""
        for header in ("etag", "content-type", "content-length", "cache-control", "content-security-policy"):
            assert asked.headers[header] == got.headers[header]
        assert (await service.http.post("/")).status_code == 405
        assert (await service.http.post("/page/page.js")).status_code == 405


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["index.html", "page.py", "..%2fpage.py", "%2e%2e%2fauth.py", "x" * 10_000, ""])
async def test_no_other_file_is_served(start: Start, name: str) -> None:
    """Only those that the page needs are there, whatever is asked for; the refusal is a problem detail."""
    async with start() as service:
        answer = await service.http.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "etag" not in answer.headers


@pytest.mark.anyio
async def test_page_knows_the_demonstration(start: Start) -> None:
    """Only the page of the demonstration asks for a name instead of a token, and its tag is another."""
    tags = set()
    for demo, mark in ((False, 'data-demo="0"'), (True, 'data-demo="1"')):
        async with start(demo=demo) as service:
            answer = await service.http.get("/")
        assert mark in answer.text
        tags.add(answer.headers["etag"])
    assert len(tags) == 2


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """No script, style or handler stands in the page, and every address is the service's own."""
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    parsed = _Tags(text)
    assert parsed.inline == ""
    names = {name for _, attributes in parsed.tags for name in attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]
    addresses = [tag.get("src") or tag.get("href") for tag in parsed.of("script", "link", "img", "a")]
    assert all(address and re.match(r"/\w|#", address) for address in addresses)
    for file in FOLDER.iterdir():
        found = re.findall(r"https?://[^\s\"']+", file.read_text(encoding="utf-8"))
        assert set(found) <= {"http://www.w3.org/2000/svg"}, file.name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", _script())


@pytest.mark.anyio
async def test_files_that_are_not_there(start: Start) -> None:
    """What the page does not have is refused as everything else is."""
    async with start() as service:
        assert_refused(await service.http.get("/page/nope.js"), 404)


def test_page_can_be_read_aloud() -> None:
    """It has a language and a title, each field a label, each section a heading, each picture a text."""
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    parsed = _Tags(text)
    assert parsed.of("html")[0]["lang"] == "en"
    assert "<title>Streak</title>" in text
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {label.get("for") for label in parsed.of("label")}
    for field in parsed.of("input"):
        assert field.get("type") == "radio" or field["id"] in labelled
    for section in parsed.of("section"):
        assert section["aria-labelledby"] in ids
    for _, attributes in parsed.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) in [None, *ids]
    assert all("alt" in image for image in parsed.of("img"))


def _script() -> str:
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


def test_script_is_a_few_lines() -> None:
    """The script is short, depends on nothing, and keeps the token out of addresses and of what outlives the tab."""
    script = _script()
    assert all(len((FOLDER / name).read_text(encoding="utf-8").splitlines()) <= 300 for name in SCRIPTS)
    assert not re.search(r"\bimport\b|\brequire\(|localStorage|document\.cookie|location\.(search|hash|href)", script)
