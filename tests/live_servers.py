"""Servers on loopback for tests: in this process, as a deployment starts them; and a PostgreSQL.

A plug-in of pytest: `pytest_plugins = ["live_servers"]`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[tuple[str, Service]]:
    """A live server and its worker; it ends gracefully."""
    service = Service(settings)
    service.load()
    config = uvicorn.Config(
        build_app(service), host="127.0.0.1", port=0, log_config=None, ws="none",
        timeout_graceful_shutdown=10,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", service
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits for something."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Deployment:
    """`mmrec serve` in processes of its own.

    Args:
        process: the parent of its workers, or the only one.
        port: that it listens on.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.address = process, f"http://127.0.0.1:{port}"

    def workers(self) -> list[psutil.Process]:
        """Those that live, the oldest first."""
        found = []
        for each in psutil.Process(self.process.pid).children():
            try:
                if "spawn_main" in " ".join(each.cmdline()):
                    found.append((each.create_time(), each))
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def is_ready(self) -> bool:
        """Whether any of its workers answers, with all in order."""
        assert self.process.poll() is None
        try:
            return bool(httpx.get(f"{self.address}/readyz", timeout=5).json()["status"] == "ok")
        except httpx.TransportError:
            return False


@contextmanager
def deployed(
    run: Path, url: str, *, workers: int, models: Path | None = None
) -> Iterator[Deployment]:
    """A service that answers; in the end it is told to end, where it has not ended yet.

    Args:
        run: that it serves.
        url: of its database.
        workers: processes.
        models: other versions.
    """
    port = free_port()
    command = [sys.executable, "-m", "mmrec.cli", "serve", str(run), "--port", str(port),
               "--database", url, "--workers", str(workers)]  # fmt: skip
    if models is not None:
        command += ["--models", str(models)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deployment = Deployment(process, port)
        try:
            until(deployment.is_ready, 120)
            yield deployment
        finally:
            process.terminate()
            process.wait(40)


class PostgreSQL:
    """A server of its own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        # it refuses to run as root
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            folder.chmod(0o777)
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "mmrec", "--no-sync")
        self.url = f"postgresql+psycopg://mmrec@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it."""
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-o", options, "-w", "-l",
                  str(self._folder / "log"), "start")  # fmt: skip

    def stop(self) -> None:
        """Stops it at once, as a machine that fails does."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self._user, cwd="/")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running server; the test is skipped where PostgreSQL is not installed."""
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL is not installed (initdb, pg_ctl)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # not below pytest's folder, which other users may not enter
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True)
                  .stdout.strip())  # fmt: skip
    server = PostgreSQL(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """An empty database of its own."""
    import sqlalchemy

    name = f"d{time.time_ns()}"
    engine = sqlalchemy.create_engine(postgresql.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    yield postgresql.url.replace("/postgres", f"/{name}")
