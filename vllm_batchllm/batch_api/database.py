# SPDX-License-Identifier: Apache-2.0
"""The database of files and batches: SQLite with a write-ahead log, or any that SQLAlchemy knows.

Every access is one short transaction, made again where the database was locked or gone for a
moment. Calls block: whoever is in an event loop makes them in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    TimeoutError,
)

from vllm_batchllm.errors import UsageError
from vllm_batchllm.messages import clip

T = TypeVar("T")
Work = Callable[[Connection], T]

BUSY_S = 2.0
"""How long SQLite waits for another process that writes, seconds, before it says `locked`."""

PAUSES_S = (0.05, 0.2, 0.5)
"""Pauses between tries, seconds: one try more than pauses."""


class DatabaseAway(Exception):
    """The database was locked or not reachable in every try."""


class Database:
    """Transactions on the database at a URL.

    Args:
        busy_s: how long SQLite waits in a try. pauses_s: between tries where the database is away.

    Raises:
        UsageError: the URL names no database that can be used here.
    """

    def __init__(
        self, url: str, *, busy_s: float = BUSY_S, pauses_s: tuple[float, ...] = PAUSES_S
    ) -> None:
        self._pauses_s = pauses_s
        self._engine = _engine(url, busy_s)

    def do(self, work: Work[T]) -> T:
        """The result of ``work`` in a transaction; it may be called several times.

        Raises:
            DatabaseAway: in no try was the database there.
        """
        for pause_s in (*self._pauses_s, None):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except (OperationalError, InterfaceError, TimeoutError, DBAPIError) as error:
                if not _is_away(error):
                    raise
                if pause_s is None:
                    raise DatabaseAway(
                        f"the database of batches is away: {_short(error)}"
                    ) from error
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    async def ado(self, work: Work[T]) -> T:
        """:meth:`do`, in a thread."""
        return await asyncio.to_thread(self.do, work)

    def close(self) -> None:
        """Let connections go."""
        self._engine.dispose()


def _is_away(error: Exception) -> bool:
    """Whether another try may succeed: the server is gone, or somebody holds a lock."""
    if isinstance(error, (OperationalError, InterfaceError, TimeoutError)):
        return True
    return isinstance(error, DBAPIError) and bool(error.connection_invalidated)


def _short(error: Exception) -> str:
    reason = str(getattr(error, "orig", None) or error).strip()
    return (reason.splitlines() or [type(error).__name__])[0][:200]


def _engine(url: str, busy_s: float) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        is_sqlite = parsed.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"timeout": busy_s} if is_sqlite else {}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not is_sqlite)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"--batch-db {clip(_without_password(url))} is no database: {_short(error)}. Give a URL such as "
            "sqlite:////folder/batches.sqlite3 or postgresql://user@host/name"
        ) from None
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--batch-db of this kind needs the Python package {error.name!r}, which is not "
            f"installed: pip install {'psycopg[binary]' if error.name == 'psycopg' else error.name}"
        ) from None
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _without_password(url: str) -> str:
    try:
        parsed: URL = make_url(url)
    except ArgumentError:
        return url.rpartition("@")[2]
    return parsed.render_as_string(hide_password=True)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we say when a transaction begins
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    # What reads first and writes then would fail at the write if somebody wrote between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
