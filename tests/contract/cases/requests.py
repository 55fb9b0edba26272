"""Sessions of requests."""

from __future__ import annotations

import io
from typing import Any

import requests
from requests.adapters import BaseAdapter

from tests.contract.cases import Case, Servers


class _Adapter(BaseAdapter):
    """Answers by itself."""

    def __init__(self, case: Requests) -> None:
        super().__init__()
        self._case = case

    def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
        if self._case.error is not None:
            raise self._case.error
        answer = self._case.answer
        answer.request = request
        return answer

    def close(self) -> None:
        """Nothing is open."""


class Requests(Case):
    name = "requests"
    metric = "http.client.request.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.answer = requests.Response()
        self.answer.status_code = 200
        self.answer.url = "http://contract.test/"
        self.answer.raw = io.BytesIO(b"42")
        self.target = self.session = requests.Session()
        self.session.trust_env = False
        self.session.mount("http://", _Adapter(self))

    def work(self) -> Any:
        return self.session.get("http://contract.test/")

    def hostile(self) -> Any:
        return self.session.request("\x7f" * 100, "http://u:p@\u00fc.test:0/?" + "q=\x1b&" * 10_000)

    def state(self) -> list[Any]:
        return [
            requests.Session.send, requests.Response.iter_content, requests.Response.close, *vars(self.session),
        ]  # fmt: skip

    def close(self) -> None:
        self.session.close()
