# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL of its own for a test, from Debian's packages (``apt-get install postgresql``)."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCOUNT = "postgres"
"""Whom it runs as where the test is root, as which it refuses to run."""


def why_not() -> str | None:
    """Why no PostgreSQL can be had here; None if one can."""
    if importlib.util.find_spec("psycopg") is None:
        return 'psycopg is not installed: pip install "psycopg[binary]"'
    if not binaries():
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and ACCOUNT not in {user.pw_name for user in pwd.getpwall()}:
        return f"there is no account {ACCOUNT}, and PostgreSQL does not run as root"
    return None


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL here."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """A server that listens on a port of this machine. url: of its database."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.url = f"postgresql://{ACCOUNT}@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        self._control("start", "-o", f"-p {self._port} -h 127.0.0.1 -k {self._folder}")

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def _control(self, *words: str) -> None:
        run("pg_ctl", "-D", self._folder / "data", "-l", self._folder / "log", "-w", *words)


def run(name: str, *words: object) -> None:
    """A command of PostgreSQL's, not as root. Raises CalledProcessError."""
    command = [str(binaries()) + f"/{name}", *map(str, words)]
    if os.geteuid() == 0:
        command = ["runuser", "-u", ACCOUNT, "--", *command]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A new server while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="batch-api-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    run("initdb", "-D", folder / "data", "-U", ACCOUNT, "-A", "trust", "--no-sync")
    server = Postgres(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
