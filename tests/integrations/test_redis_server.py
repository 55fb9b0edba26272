"""The figures of a Redis server, looked at by a thread over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

import otel_perf
from collector import servers
from collector.process import free_port
from otel_perf import instrument
from otel_perf.integrations import redis_calls
from otel_perf.integrations import redis_server as looking
from tests.conftest import Telemetry
from tests.servers import find_or_skip
from tests.test_testing import certificates

_THREAD = "otel_perf-redis-info"
_METRICS = {
    "redis.memory.used", "redis.memory.peak", "redis.clients.connected", "redis.commands.processed", "redis.commands",
    "redis.keyspace.hits", "redis.keyspace.misses", "redis.keys.evicted",
}  # fmt: skip


def _threads() -> int:
    return sum(thread.name == _THREAD for thread in threading.enumerate())


def _until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _seen(telemetry: Telemetry, name: str = "redis.uptime") -> list[Any]:
    return _until(lambda: telemetry.points(name))


def test_the_figures(telemetry: Telemetry, redis_server: Any) -> None:
    """Each figure of the server is there, by its address; the version is on the uptime."""
    telemetry.restart(redis_info_interval_s=0.1)
    with redis.Redis(host="127.0.0.1", port=redis_server.port) as client, instrument(client):
        client.set("a", 1)
        (uptime,) = _seen(telemetry)
        address = {"server.address": "127.0.0.1", "server.port": redis_server.port}
        assert {**uptime.attributes} == {**address, "redis.version": client.info("server")["redis_version"]}
        for name in _METRICS:
            (point,) = telemetry.points(name)
            assert {**point.attributes} == address
        assert telemetry.points("redis.memory.used")[0].value > 100_000
        hits = telemetry.points("redis.keyspace.hits")[0].value
        client.get("a")
        assert _until(lambda: telemetry.points("redis.keyspace.hits")[0].value > hits)


def test_it_is_no_operation(telemetry: Telemetry, redis_server: Any) -> None:
    """Looking makes neither span nor query, takes no connection of the pool, and one thread serves all clients."""
    gc.collect()  # clients of other tests, which would be looked at too
    telemetry.restart(redis_info_interval_s=0.05)
    with instrument("redis"):
        clients = [redis.Redis(host="127.0.0.1", port=redis_server.port) for _ in range(5)]
        for client in clients:
            client.ping()
        _seen(telemetry)
        time.sleep(0.2)
        assert _threads() == 1
        assert len(telemetry.points("redis.uptime")) == 1
        assert {span.name for span in telemetry.spans} == {"PING"}
        assert sum(point.count for point in telemetry.points("db.client.operation.duration")) == 5
        for client in clients:
            assert len(client.connection_pool._available_connections) == 1
            client.close()


def test_it_is_there_while_it_is_wanted(telemetry: Telemetry, redis_server: Any) -> None:
    """No thread before `configure()`, none after undo or shutdown, none with an interval of 0; a collect starts it."""
    otel_perf.shutdown()
    with redis.Redis(port=redis_server.port) as client:
        with instrument(client):
            assert _threads() == 0
            telemetry.restart()
            telemetry.points("redis.uptime")
            assert _threads() == 1
            telemetry.restart(redis_info_interval_s=0)
            telemetry.points("redis.uptime")
            assert _until(lambda: _threads() == 0)
            telemetry.restart()
            with instrument("redis"):
                telemetry.points("redis.uptime")
                assert _threads() == 1
            assert _threads() == 1
        assert _until(lambda: _threads() == 0)
        with instrument(client):
            assert _threads() == 1
            otel_perf.shutdown()
            assert _until(lambda: _threads() == 0)


@pytest.mark.parametrize("kind", ["password", "user", "socket", "async", "async socket"])
def test_ways_to_connect(telemetry: Telemetry, kind: str, tmp_path: Any) -> None:
    """It gets in as the application does: by password, as a user, over a socket file, for async clients too."""
    find_or_skip("redis-server")
    telemetry.restart(redis_info_interval_s=0.1)
    with servers.redis(password="open-sesame") as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("ACL SETUSER reader on >secret ~* +@all")
        path = tmp_path / "redis.sock"
        arguments: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "password": "open-sesame"}
        if kind == "user":
            arguments |= {"username": "reader", "password": "secret"}
        if "socket" in kind:
            relay = _relay(str(path), server.port)
            arguments = {"unix_socket_path": str(path), "password": "open-sesame"}
        made: Any = (redis.asyncio.Redis if "async" in kind else redis.Redis)(**arguments)
        with instrument(made):
            (uptime,) = _seen(telemetry)
        if "async" in kind:
            asyncio.run(made.aclose())
        else:
            made.close()
        if "socket" in kind:
            assert {**uptime.attributes}["server.address"] == str(path)
            assert "server.port" not in uptime.attributes
            relay()


@pytest.mark.parametrize("later", [False, True])
def test_over_tls(telemetry: Telemetry, later: bool, tmp_path: Any) -> None:
    """A server that is reached over TLS is looked at over TLS, with the application's own certificate of the other."""
    find_or_skip("redis-server")
    certificates(tmp_path)
    pem = str(tmp_path / "server.pem")
    telemetry.restart(redis_info_interval_s=0.1)
    with servers.redis() as server:
        port = free_port()
        with redis.Redis(port=server.port) as admin:
            try:
                files = ("tls-cert-file", pem, "tls-key-file", pem, "tls-ca-cert-file", pem)
                admin.execute_command("CONFIG SET", *files, "tls-auth-clients", "no", "tls-port", port)
            except redis.ResponseError as error:
                pytest.skip(f"this Redis was built without TLS: {error}")
        made: Any = (redis.asyncio.Redis if later else redis.Redis)(
            host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=pem
        )
        with instrument(made):
            (uptime,) = _seen(telemetry)
        if later:
            asyncio.run(made.aclose())
        else:
            made.close()
    assert {**uptime.attributes}["server.port"] == port


def _relay(path: str, port: int) -> Callable[[], None]:
    """Passes on what comes in at a socket file, since the server here was started without one."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    def pump(one: socket.socket, other: socket.socket) -> None:
        while True:
            try:
                data = one.recv(65536)
                other.sendall(data) if data else other.shutdown(socket.SHUT_RDWR)
            except OSError:
                break
            if not data:
                break

    def serve() -> None:
        while True:
            try:
                near = listening.accept()[0]
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                other = threading.Thread(target=pump, args=(far, near))
                other.start()
                pump(near, far)
                other.join()

    thread = threading.Thread(target=serve)
    thread.start()

    def stop() -> None:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)

    return stop


def test_no_permission(telemetry: Telemetry, redis_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A user who may not ask is told once, and is never asked for again."""
    with redis.Redis(port=redis_server.port) as admin:
        admin.execute_command("ACL SETUSER blind on >secret ~* +ping +get +client")
        try:
            telemetry.restart(redis_info_interval_s=0.03)
            arguments = {"host": "127.0.0.1", "port": redis_server.port, "username": "blind", "password": "secret"}
            with caplog.at_level(logging.WARNING, "otel_perf"), redis.Redis(**arguments) as client, instrument(client):
                _until(lambda: caplog.records)
                time.sleep(0.2)
                assert telemetry.points("redis.uptime") == []
            denied = [entry for entry in admin.acl_log() if entry["username"] == "blind"]
        finally:
            admin.execute_command("ACL DELUSER blind")
            admin.execute_command("ACL LOG RESET")
    (record,) = caplog.records
    assert "grant INFO to its user" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert sum(int(entry["count"]) for entry in denied) == 1


@pytest.mark.parametrize("names", [("blind", "default"), ("default", "blind"), ("blind", "blinder", "default")])
def test_one_user_without_permission(
    telemetry: Telemetry, redis_server: Any, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """Of several users of one server whoever may ask is asked, in whichever order they come; nobody is warned."""
    gc.collect()
    with redis.Redis(port=redis_server.port) as admin:
        for name in ("blind", "blinder"):
            admin.execute_command(f"ACL SETUSER {name} on >secret ~* +ping +get +client")
        clients = [
            redis.Redis(
                host="127.0.0.1",
                port=redis_server.port,
                **({} if name == "default" else {"username": name, "password": "secret"}),
            )
            for name in names
        ]
        try:
            telemetry.restart(redis_info_interval_s=0.03)
            with caplog.at_level(logging.WARNING, "otel_perf"), contextlib.ExitStack() as handles:
                for client in clients:
                    client.ping()
                    handles.enter_context(client)
                for client in clients:
                    redis_calls.server_of(client.connection_pool)
                handles.enter_context(instrument("redis"))
                assert len(_seen(telemetry)) == 1
        finally:
            for name in ("blind", "blinder"):
                admin.execute_command("ACL DELUSER", name)
            admin.execute_command("ACL LOG RESET")
    assert caplog.records == []


def test_a_server_that_went_away(telemetry: Telemetry) -> None:
    """What it said last is reported for three intervals and then no more; a new server's counts go on from there."""
    find_or_skip("redis-server")
    telemetry.restart(redis_info_interval_s=0.1)
    with servers.redis() as server:
        client = redis.Redis(host="127.0.0.1", port=server.port)
        handle = instrument(client)
        for _ in range(50):
            client.ping()
        before = _until(lambda: [p.value for p in telemetry.points("redis.commands.processed") if p.value > 50])[0]
    client.close()
    assert _until(lambda: not telemetry.points("redis.uptime"))
    with servers.redis(port=server.port):
        (after,) = _seen(telemetry, "redis.commands.processed")
        handle.undo()
    assert after.value >= before


def test_a_server_that_says_nothing(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it: the look gives up, and undo does not wait for that."""
    monkeypatch.setattr(looking, "_TIMEOUT_S", 0.2)
    telemetry.restart(redis_info_interval_s=0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = redis.Redis(host="127.0.0.1", port=deaf.getsockname()[1])
        with instrument(client):
            time.sleep(0.4)
            assert telemetry.points("redis.uptime") == []
        client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_in_a_forked_child(telemetry: Telemetry, redis_server: Any) -> None:
    """A child has a thread of its own."""
    telemetry.restart(redis_info_interval_s=0.1)
    with redis.Redis(port=redis_server.port) as client, instrument(client):
        _seen(telemetry)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                looking._look.figures.clear()
                found = _until(lambda: _threads() == 1 and looking._look.figures)
                status = 0 if found else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
