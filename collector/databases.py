"""Redis, PostgreSQL and a Firestore emulator on free loopback ports, for tests, the demo service and the stack."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collector import process, tools
from collector.server import Server, start_in, work_folder

__all__ = ["Firestore", "PostgreSQL", "Redis", "firestore", "postgresql", "redis"]


@dataclass(slots=True, kw_only=True)
class Redis(Server):
    """A Redis that keeps nothing on disk."""

    port: int
    url: str


@dataclass(slots=True, kw_only=True)
class PostgreSQL(Server):
    """A PostgreSQL with one database; `url` is for SQLAlchemy with asyncpg, `sync_url` for SQLAlchemy with psycopg."""

    port: int
    url: str
    sync_url: str
    dsn: str


@dataclass(slots=True, kw_only=True)
class Firestore(Server):
    """A Firestore emulator; `address` is what FIRESTORE_EMULATOR_HOST takes. It does not isolate transactions."""

    port: int
    address: str


def firestore(*, port: int | None = None) -> Firestore:
    """Start a Firestore emulator that keeps everything in memory."""
    binary = tools.find("firestore-emulator")
    chosen = port or process.free_port()
    directory = work_folder("firestore")
    started = start_in("firestore", [str(binary), str(chosen)], directory, healthy=process.tcp_open(chosen))
    return Firestore(process=started, directory=directory, port=chosen, address=f"127.0.0.1:{chosen}")


def redis(*, port: int | None = None, password: str | None = None, cluster: bool = False) -> Redis:
    """Start a Redis; `password` makes it ask for one, `cluster` makes it a cluster that holds no slots yet."""
    binary = tools.find("redis-server")
    chosen = port or process.free_port()
    directory = work_folder("redis")
    command: list[str] = [str(binary), "--bind", "127.0.0.1", "--port", str(chosen)]
    command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
    if password:
        command += ["--requirepass", password]
    if cluster:
        # Its bus would be 10,000 ports above, where there may be none.
        command += ["--cluster-enabled", "yes", "--cluster-port", str(process.free_port())]
    started = start_in("redis", command, directory, healthy=lambda: _redis_answers(chosen))
    login = f":{password}@" if password else ""
    return Redis(process=started, directory=directory, port=chosen, url=f"redis://{login}127.0.0.1:{chosen}/0")


def postgresql(*, port: int | None = None, database: str = "otel_perf") -> PostgreSQL:
    """Start a PostgreSQL in a fresh cluster, with one empty database; any loopback client is trusted."""
    binary = tools.find("postgres").resolve()  # its companions (initdb, createdb) are beside the real file
    chosen = port or process.free_port()
    directory = work_folder("postgresql")
    user = _postgresql_user()
    if user is not None:
        shutil.chown(directory, user)
    data = directory / "data"
    try:
        _initdb(binary.with_name("initdb"), data, user)
        command = [str(binary), "-D", str(data), "-h", "127.0.0.1", "-p", str(chosen), "-k", str(directory)]
        # A throwaway cluster: a crash may lose it, and tests should not wait for the disk.
        command += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]
        started = process.start(
            "postgresql",
            command,
            log_path=directory / "log",
            directory=directory,
            user=user,
            stop_signal=signal.SIGINT,  # its fast shutdown; on SIGTERM it would wait for every client to leave
            healthy=lambda: _postgresql_ready(binary, chosen),
            deadline_s=60,
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    server = PostgreSQL(
        process=started,
        directory=directory,
        port=chosen,
        url=f"postgresql+asyncpg://postgres@127.0.0.1:{chosen}/{database}",
        sync_url=f"postgresql+psycopg://postgres@127.0.0.1:{chosen}/{database}",
        dsn=f"postgresql://postgres@127.0.0.1:{chosen}/{database}",
    )
    if database != "postgres":
        _or_stop(server, [binary.with_name("createdb"), "-h", "127.0.0.1", "-p", chosen, "-U", "postgres", database])
    return server


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _postgresql_user() -> str | None:
    """Return whom PostgreSQL is to run as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    import pwd

    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return "nobody"
    return "postgres"


def _initdb(binary: Path, data: Path, user: str | None) -> None:
    command = [str(binary), "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
    made = subprocess.run(
        [*command, "--no-sync"],
        user=user,
        extra_groups=[] if user is not None else None,
        cwd=data.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise process.StartError(f"initdb failed with exit code {made.returncode}:\n{made.stdout}{made.stderr}")


def _postgresql_ready(binary: Path, port: int) -> bool:
    asked = [str(binary.with_name("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(asked, check=False).returncode == 0


def _or_stop(server: Server, command: Sequence[object]) -> None:
    """Run a command against the server; where it fails the server goes down with it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        server.stop()
        raise process.StartError(f"{server.process.name}: {command[0]} failed: {done.stderr.strip()}")
