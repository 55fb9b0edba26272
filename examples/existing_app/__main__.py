"""Runs the app: `python -m examples.existing_app`."""

from __future__ import annotations

import os

import uvicorn

from .app import app

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
