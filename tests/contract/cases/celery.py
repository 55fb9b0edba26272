"""Celery, where tasks run eagerly: what a worker adds is in its own tests."""

from __future__ import annotations

from typing import Any

from celery import Celery, signals

from tests.contract.cases import Case, Servers


class EagerCelery(Case):
    name = "celery"
    metric = "background.job.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.app = Celery("contract", set_as_current=False)
        self.app.conf.update(broker_url="memory://", result_backend="cache+memory://", task_always_eager=True)
        self.task = self.app.task(self._meet, name="contract", shared=False)

    def _meet(self, *_: Any, **__: Any) -> str:
        if self.error is not None:
            raise self.error
        return "42"

    def work(self) -> Any:
        return self.task.apply(throw=True).get()

    def hostile(self) -> Any:
        return self.task.apply(
            args=["\ud800\x1b" * 10_000], task_id="\x1b" * 10_000, headers={"traceparent": "\x1b"}
        ).get()

    def state(self) -> list[Any]:
        used = ("before_task_publish", "task_prerun", "task_postrun", "task_retry", "task_failure")
        return [each for name in used for each in getattr(signals, name).receivers]

    def close(self) -> None:
        self.app.close()
