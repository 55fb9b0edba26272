"""The commands of `otel-perf`."""

from __future__ import annotations

import time
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.live import Live

from otel_perf._version import __version__
from otel_perf.cli.table import render

__all__ = ["app"]

app = typer.Typer(
    name="otel-perf",
    help="Watch the performance of a Python service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_err = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Watch the performance of a Python service."""


@app.command()
def top(
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
    token: Annotated[
        str | None, typer.Option(envvar="OTEL_PERF_ACCESS_TOKEN", help="Bearer token, when it is another machine.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and leave.")] = False,
) -> None:
    """Show a live table of a running service, read from its /api/performance. Ctrl-C leaves.

    Example: otel-perf top --url http://127.0.0.1:8000
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=5) as client:
        document = _read(client, url)
        if once:
            Console().print(render(document))
            return
        try:
            with Live(render(document), screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(render(_read(client, url)), refresh=True)
        except KeyboardInterrupt:
            return


def _read(client: httpx.Client, url: str) -> dict[str, Any]:
    try:
        answer = client.get("/api/performance")
    except httpx.HTTPError as error:
        _err.print(f"No answer from {url}: {error}. Is the service running there? Say where with --url.")
        raise typer.Exit(1) from None
    try:
        document: dict[str, Any] = answer.json()
    except ValueError:
        _err.print(f"{url}/api/performance answers {answer.status_code} and no JSON: does the service call mount(app)?")
        raise typer.Exit(1) from None
    if answer.is_error:
        _err.print(f"{url} refused: {document.get('error', answer.status_code)}")
        raise typer.Exit(1)
    return document
