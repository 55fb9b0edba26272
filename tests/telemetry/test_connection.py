"""One kept connection: reuse, stale ones, deadlines, TLS, proxies, and no end without an end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from collector.certificate import make_certificate
from otel_perf.telemetry import connection
from otel_perf.telemetry.connection import MAX_ANSWER_BYTES, Connection, Failed, Proxy

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Talk = Callable[[socket.socket, bytes], bool]


class Server:
    """Reads whole requests and lets a function answer each; counts connections and keeps what was sent."""

    def __init__(self, talk: Talk, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._talk = talk
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(accepted)
            self._threads.append(threading.Thread(target=self._serve, args=(accepted,)))
            self._threads[-1].start()

    def _serve(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(accepted):
            wire = self._context.wrap_socket(accepted, server_side=True) if self._context else accepted
            self._open.append(wire)
            with contextlib.closing(wire):
                while (request := self._request(wire)) is not None:
                    self.requests.append(request)
                    if not self._talk(wire, request):
                        return

    @staticmethod
    def _request(wire: socket.socket) -> bytes | None:
        got = b""
        while b"\r\n\r\n" not in got:
            more = wire.recv(65_536)
            if not more:
                return None
            got += more
        head, _, body = got.partition(b"\r\n\r\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
        while len(body) < size:
            body += wire.recv(65_536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


@contextlib.contextmanager
def serving(talk: Talk, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(talk, context)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def connected(address: str, *args, **kwargs) -> Iterator[Connection]:
    made = Connection(address, {"x-team": "a"}, *args, **kwargs)
    try:
        yield made
    finally:
        made.close()


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


def ok(wire: socket.socket, _: bytes) -> bool:
    wire.sendall(OK)
    return True


def test_requests_share_a_connection():
    """Several requests, one connection, each with its head and its body."""
    with serving(ok) as server, connected(f"http://127.0.0.1:{server.port}/a b/v1?key=1") as sending:
        for body in (b"one", b"", b"x" * 500_000):
            answer = sending.post(body, {"content-encoding": "gzip"}, soon())
            assert (answer.status, answer.body) == (200, b"ok")
        assert server.connections == 1
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.decode().split("\r\n") == [
            "POST /a%20b/v1?key=1 HTTP/1.1", f"host: 127.0.0.1:{server.port}", "x-team: a", "content-encoding: gzip",
            "content-length: 3",
        ]  # fmt: skip
        assert body == b"one"
        assert [len(request) for request in server.requests[1:]][-1] > 500_000


def test_an_address_is_quoted():
    """What may not stand in a request line is percent-encoded, in the path and in the query; what is, stays."""
    with serving(ok) as server, connected(f"http://127.0.0.1:{server.port}/é?é=1 2&x=%20/?") as sending:
        sending.post(b"", {}, soon())
        assert server.requests[0].startswith(b"POST /%C3%A9?%C3%A9=1%202&x=%20/? HTTP/1.1\r\n")


@pytest.mark.parametrize("first", [b"100 Continue", b"103 Early Hints", b"102 Processing"])
def test_what_comes_before_the_answer_is_passed_over(first):
    """In one piece with it or not, more than once; the connection stays usable."""
    early = b"HTTP/1.1 " + first + b"\r\nlink: x\r\n\r\n"

    def talk(wire: socket.socket, request: bytes) -> bool:
        wire.sendall(early + early)
        if request.endswith(b"slow"):
            time.sleep(0.05)
        wire.sendall(early + OK)
        return True

    with serving(talk) as server, connected(f"http://127.0.0.1:{server.port}/") as sending:
        for body in (b"fast", b"slow", b"fast"):
            answer = sending.post(body, {}, soon())
            assert (answer.status, answer.body) == (200, b"ok")
        assert server.connections == 1


def test_switching_protocols_is_an_answer():
    """Nobody asked for it, and nothing follows."""

    def talk(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        return True

    with serving(talk) as server, connected(f"http://127.0.0.1:{server.port}/") as sending:
        assert sending.post(b"", {}, soon()).status == 101


def test_a_connection_that_was_closed_meanwhile_is_opened_again():
    """Servers close idle connections; that costs nothing."""

    def once(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(OK)
        return False  # closed without saying so

    with serving(once) as server, connected(f"http://127.0.0.1:{server.port}") as sending:
        for _ in range(3):
            assert sending.post(b"x", {}, soon()).status == 200
        assert server.connections == 3


def test_a_connection_that_is_closed_by_the_next_request(monkeypatch):
    """The close may cross the request on its way: once more over a new one, and only once."""
    monkeypatch.setattr(connection._Wire, "is_stale", lambda _: False)
    answers = iter([True, False, True, False, False])

    def now_and_then(wire: socket.socket, _: bytes) -> bool:
        answered = next(answers)
        if answered:
            wire.sendall(OK)
        return answered

    with serving(now_and_then) as server, connected(f"http://127.0.0.1:{server.port}") as sending:
        assert sending.post(b"1", {}, soon()).status == 200
        assert sending.post(b"2", {}, soon()).status == 200
        assert server.connections == 2
        with pytest.raises(Failed):
            sending.post(b"3", {}, soon())
        assert server.connections == 3


def test_a_server_that_wants_to_close_is_let_go():
    """`connection: close` is heeded."""

    def closing(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(b"HTTP/1.1 202 Accepted\r\nconnection: close\r\n\r\n")
        return False

    with serving(closing) as server, connected(f"http://127.0.0.1:{server.port}") as sending:
        assert [sending.post(b"x", {}, soon()).status for _ in range(2)] == [202, 202]
        assert server.connections == 2


def drips(wire: socket.socket, _: bytes) -> bool:
    for byte in OK * 100:
        wire.sendall(bytes([byte]))
        time.sleep(0.02)
    return True


def says_nothing(_wire: socket.socket, _: bytes) -> bool:
    return True


def drips_a_body(wire: socket.socket, _: bytes) -> bool:
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    return drips(wire, b"")


@pytest.mark.parametrize("talk", [drips, says_nothing, drips_a_body])
def test_the_deadline_holds_for_the_whole_answer(talk):
    """However its bytes come."""
    with serving(talk) as server, connected(f"http://127.0.0.1:{server.port}") as sending:
        with pytest.raises(Failed, match="no answer in time"):
            sending.post(b"x", {}, soon(0.15))
        with pytest.raises(Failed, match="no answer in time"):
            sending.post(b"x", {}, time.monotonic() - 1)


def test_what_is_being_done_can_be_given_up():
    """Another thread ends the wait for an answer, and nothing is sent any more."""
    asked = threading.Event()

    def silent(_wire: socket.socket, _: bytes) -> bool:
        asked.set()
        return True

    failures = []
    with serving(silent) as server, connected(f"http://127.0.0.1:{server.port}") as sending:

        def post() -> None:
            with pytest.raises(Failed) as failed:
                sending.post(b"x", {}, soon(60))
            failures.append(failed.value)

        thread = threading.Thread(target=post)
        thread.start()
        assert asked.wait(10)
        sending.abort()
        thread.join(10)
        assert len(failures) == 1
        with pytest.raises(Failed):
            sending.post(b"x", {}, soon(60))


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ndate: x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
     b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"],
)  # fmt: skip
def test_an_answer_that_is_cut_off_is_none(answer):
    """Wherever the connection breaks."""

    def talk(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(answer)
        return False

    with serving(talk) as server, connected(f"http://127.0.0.1:{server.port}") as sending, pytest.raises(Failed):
        sending.post(b"x", {}, soon())


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 nonsense\r\n\r\n", b""])
def test_what_is_no_http(answer):
    """It is a failure with a short reason."""

    def talk(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(answer)
        return False

    with serving(talk) as server, connected(f"http://127.0.0.1:{server.port}") as sending, pytest.raises(Failed):
        sending.post(b"x", {}, soon())


def test_a_long_answer_is_not_read():
    """Nor is what is left of it taken for the next answer."""

    def long(wire: socket.socket, _: bytes) -> bool:
        size = MAX_ANSWER_BYTES + 1
        wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        return True

    with serving(long) as server, connected(f"http://127.0.0.1:{server.port}") as sending:
        assert [sending.post(b"x", {}, soon()).body for _ in range(2)] == [None, None]
        assert server.connections == 2


def test_nobody_there():
    """The reason is the system's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with connected(f"http://127.0.0.1:{port}") as sending, pytest.raises(Failed, match="connection refused"):
        sending.post(b"x", {}, soon())
    with connected("http://no-such-host.invalid") as sending, pytest.raises(Failed):
        sending.post(b"x", {}, soon())


# TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A key and a certificate for loopback."""
    place = tmp_path_factory.mktemp("tls")
    key, certificate = make_certificate()
    (place / "key.pem").write_bytes(key)
    (place / "cert.pem").write_bytes(certificate)
    return place


def of_a_server(files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    return context


def test_tls_to_who_is_trusted(files):
    """Requests share the connection as without TLS."""
    context = ssl.create_default_context(cafile=str(files / "cert.pem"))
    with (
        serving(ok, of_a_server(files)) as server,
        connected(f"https://localhost:{server.port}/v1", context) as sending,
    ):
        assert [sending.post(b"x" * 100_000, {}, soon()).status for _ in range(3)] == [200] * 3
        assert server.connections == 1


def test_tls_to_a_stranger(files):
    """Nothing is sent to who cannot show a certificate of ours, or speaks no TLS."""
    with serving(ok, of_a_server(files)) as server, connected(f"https://localhost:{server.port}") as sending:
        with pytest.raises(Failed, match="TLS failed: self-signed certificate"):
            sending.post(b"x", {}, soon())
        assert server.requests == []
    with serving(ok) as server, connected(f"https://localhost:{server.port}") as sending, pytest.raises(Failed):
        sending.post(b"x", {}, soon(0.3))


# Proxies -------------------------------------------------------------------------------------------------------------


def test_by_a_proxy():
    """It gets the whole address and its password; the server behind it gets neither."""
    with serving(ok) as server:
        proxy = Proxy("127.0.0.1", server.port, "Basic eDp5")
        with connected("http://collector:4318/v1", proxy=proxy) as sending:
            assert sending.post(b"x", {}, soon()).status == 200
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "POST http://collector:4318/v1 HTTP/1.1"
    assert "host: collector:4318" in lines
    assert "proxy-authorization: Basic eDp5" in lines


def test_tls_by_a_proxy(files):
    """A tunnel is asked for, and TLS is made with the server at its end."""
    context = ssl.create_default_context(cafile=str(files / "cert.pem"))
    behind = of_a_server(files)

    def tunnel(wire: socket.socket, request: bytes) -> bool:
        assert request.startswith(b"CONNECT localhost:4318 HTTP/1.1\r\nhost: localhost:4318\r\n\r\n")
        wire.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inner = behind.wrap_socket(wire, server_side=True)
        ok(inner, Server._request(inner) or b"")
        inner.close()
        return False

    with serving(tunnel) as server:
        address, proxy = "https://localhost:4318/v1", Proxy("127.0.0.1", server.port)
        with connected(address, context, proxy) as sending:
            assert sending.post(b"x", {}, soon()).status == 200


def test_a_proxy_that_refuses():
    """Its answer is not taken for the server's."""

    def refuse(wire: socket.socket, _: bytes) -> bool:
        wire.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        return True

    with (
        serving(refuse) as server,
        connected("https://collector", proxy=Proxy("127.0.0.1", server.port)) as sending,
        pytest.raises(Failed, match="the proxy answered 407"),
    ):
        sending.post(b"x", {}, soon())


@pytest.mark.parametrize(
    ("address", "proxy"),
    [
        ("http://p:3128", Proxy("p", 3128)),
        ("p:3128", Proxy("p", 3128)),
        ("http://p", Proxy("p", 80)),
        ("http://u%40x:y@p:1", Proxy("p", 1, "Basic dUB4Onk=")),
        ("https://p:1", None),
        ("socks5://p:1", None),
        ("http://p:nonsense", None),
        ("http://", None),
    ],
)
def test_addresses_of_proxies(address, proxy):
    """Only those that are spoken to by plain HTTP are known."""
    assert Proxy.at(address) == proxy
