"""Apps to be measured."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request
from opentelemetry.trace import SpanKind
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, StreamingResponse

from otel_perf import measure

__all__ = ["added", "answer", "busy_app", "included", "ok", "plain", "routes", "sub_app"]


async def ok(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def answer(number: int) -> int:
    return number


def routes(telemetry: Any) -> list[str | None]:
    return [each.attributes.get("http.route") for each in telemetry.spans if each.kind is SpanKind.SERVER]


def plain(app: FastAPI) -> None:
    app.get("/items/{number}")(answer)


def added(app: FastAPI) -> None:
    app.add_route("/added/{word}", ok)


def included(app: FastAPI) -> None:
    inner, outer = APIRouter(), APIRouter(prefix="/outer")
    inner.get("/items/{number}")(answer)
    inner.add_route("/added", ok)
    outer.include_router(inner, prefix="/inner")
    outer.include_router(inner, prefix="/other")
    app.include_router(outer, prefix="/api")


def sub_app() -> FastAPI:
    sub, router = FastAPI(), APIRouter()
    router.get("/items/{number}")(answer)
    router.add_route("/added/{word}", ok)
    sub.get("/items/{number}")(answer)
    sub.include_router(router, prefix="/included")
    return sub


class Activity(BaseModel):
    xp: int


def busy_app() -> FastAPI:
    app = FastAPI()

    @app.exception_handler(LookupError)
    async def handled(request: Request, error: LookupError) -> PlainTextResponse:
        return PlainTextResponse("handled", 503)

    @app.post("/activities")
    async def log(activity: Activity) -> int:
        return activity.xp

    @app.get("/fail/{how}")
    async def fail(how: str) -> None:
        raise {"plain": ValueError("x"), "handled": KeyError("k"), "http": HTTPException(502)}[how]

    @app.get("/stream/{how}")
    async def stream(how: str) -> StreamingResponse:
        async def chunks() -> Any:
            yield "one"
            with measure("chunk"):
                yield "two"
            if how == "broken":
                raise OSError("disk")

        return StreamingResponse(chunks())

    @app.get("/later")
    async def later(background: BackgroundTasks, request: Request) -> str:
        def work() -> None:
            with measure("work"):
                pass

        background.add_task(work)
        return str(request.state.request_id)

    @app.get("/sync")
    def sync() -> str:
        with measure("in a thread"):
            return "ok"

    return app
