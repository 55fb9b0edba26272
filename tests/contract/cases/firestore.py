"""google-cloud-firestore, sync and async, against an emulator."""

from __future__ import annotations

import contextlib
from typing import Any

from google.cloud.firestore_v1 import async_document, batch, document, query, transaction

from tests import firestore
from tests.contract.cases import AsyncCase, Case, Servers


class SyncFirestore(Case):
    name = "firestore"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self._stack = contextlib.ExitStack()
        address = servers.server("firestore_emulator").address
        self.target = self.client = self._stack.enter_context(firestore.client(address, "contract"))
        self.client.document("trips/one").set({"points": 42})
        self._read = self.client._firestore_api.batch_get_documents
        self.client._firestore_api.batch_get_documents = self._meet

    def _meet(self, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self._read(**options)

    def work(self) -> Any:
        return self.client.document("trips/one").get().to_dict()

    def hostile(self) -> Any:
        return self.client.document("\x1b[2J" * 1000, "x" * 10_000).get()

    def state(self) -> list[Any]:
        return [
            document.DocumentReference.get,
            query.Query._make_stream,
            batch.WriteBatch.commit,
            transaction._Transactional.__call__,
        ]

    def close(self) -> None:
        self._stack.close()


class AsyncFirestore(AsyncCase):
    name = "firestore"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self._open = firestore.async_client(servers.server("firestore_emulator").address, "contract")
        self.target = self.client = self.loop.run_until_complete(self._begin())
        self._read = self.client._firestore_api.batch_get_documents
        self.client._firestore_api.batch_get_documents = self._meet

    async def _begin(self) -> Any:
        client = await self._open.__aenter__()
        await client.document("trips/one").set({"points": 42})
        return client

    async def _meet(self, **options: Any) -> Any:
        await self.meet()
        return await self._read(**options)

    async def do(self, *, odd: bool = False) -> Any:
        path = ("\x1b[2J" * 1000, "x" * 10_000) if odd else ("trips/one",)
        answer = await self.client.document(*path).get()
        return answer if odd else answer.to_dict()

    def state(self) -> list[Any]:
        return [async_document.AsyncDocumentReference.get, async_document.AsyncDocumentReference.set]

    async def aclose(self) -> None:
        await self._open.__aexit__(None, None, None)
