"""`otel-perf`: the terminal's face."""

from __future__ import annotations

try:
    from otel_perf.cli.commands import app
except ImportError as error:  # typer, rich or httpx is missing
    raise SystemExit(f"otel-perf needs {error.name}: pip install 'otel-perf[cli]'") from None

__all__ = ["main"]


def main() -> None:
    """Runs the command line."""
    app()
