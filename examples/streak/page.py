"""The page at `/`, and its scripts, its style and its icon: files of `page/`, which are read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["POLICY", "add_page"]

_FOLDER = Path(__file__).with_name("page")
_ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "show.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs its own files and talks to its own server, and nothing else; no form leaves it without the script."""
_EACH_TIME = "no-cache"
# What is asked for by its version is always the same.
_FOR_A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str

    @property
    def version(self) -> str:
        """Return what tells this content from any other."""
        return hashlib.sha256(self.body).hexdigest()[:16]


def add_page(app: FastAPI) -> None:
    """Serve the page, to everybody: it holds nothing until someone signs in. HEAD is answered as GET."""
    page, page_of_demo, assets = _files()

    async def get_page(request: Request) -> Response:
        demo = request.app.state.parts.settings.demo
        more = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
        return _answer(request, page_of_demo if demo else page, _EACH_TIME, more)

    async def get_asset(request: Request) -> Response:
        file = assets.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404, "the page has no such file")
        kept = _FOR_A_YEAR if request.query_params.get("v") == file.version else _EACH_TIME
        return _answer(request, file, kept)

    app.add_route("/", get_page, methods=["GET"], include_in_schema=False)
    app.add_route("/page/{name}", get_asset, methods=["GET"], include_in_schema=False)


def _answer(request: Request, file: _File, kept: str, more: Mapping[str, str] | None = None) -> Response:
    # Weak, since the body may be compressed on its way.
    tag = f'W/"{file.version}"'
    headers = {"cache-control": kept, "etag": tag, "x-content-type-options": "nosniff", **(more or {})}
    known = {given.strip() for given in request.headers.get("if-none-match", "").split(",")}
    if known & {tag, tag.removeprefix("W/"), "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


@cache
def _files() -> tuple[_File, _File, Mapping[str, _File]]:
    """Return the page, the page of the demonstration, and the files that both refer to by their versions."""
    assets = {name: _File((_FOLDER / name).read_bytes(), kind) for name, kind in _ASSETS.items()}
    text = (_FOLDER / "index.html").read_text(encoding="utf-8")
    for name, file in assets.items():
        text = text.replace(f'"/page/{name}"', f'"/page/{name}?v={file.version}"')
    page, page_of_demo = (
        _File(made.encode(), "text/html; charset=utf-8")
        for made in (text, text.replace('data-demo="0"', 'data-demo="1"'))
    )
    return page, page_of_demo, assets
