# SPDX-License-Identifier: Apache-2.0
"""Which of several server processes runs the batches: whoever holds a row that expires.

The database's clock says when, so processes need not agree on the time. Every change that a runner
makes asks for the row again in the same transaction, so one that has lost it changes nothing more.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Connection, Float, literal_column, or_, select, update

from vllm_batchllm.batch_api.database import Database
from vllm_batchllm.batch_api.tables import LEASES

TERM_S = 10.0
"""How long it is held without being renewed, seconds: so long nobody runs after a kill -9."""

CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "cast(extract(epoch from clock_timestamp()) as double precision)",
    "mysql": "unix_timestamp(sysdate(6))",
    "mariadb": "unix_timestamp(sysdate(6))",
}
"""Dialect -> seconds since 1970 by the database."""


def database_now(connection: Connection) -> ColumnElement[float]:
    """Seconds since 1970 by the clock of the database."""
    return literal_column(CLOCKS[connection.dialect.name], Float(53))


def is_holder(connection: Connection, holder: str) -> ColumnElement[bool]:
    """The condition that ``holder`` holds the lease while a statement runs."""
    return (
        select(LEASES.c.name)
        .where(LEASES.c.holder == holder, LEASES.c.expires_at > database_now(connection))
        .exists()
    )


class Lease:
    """The lease as one process sees it.

    Args:
        clock: seconds that only grow, of this process.
    """

    def __init__(
        self,
        database: Database,
        *,
        term_s: float = TERM_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.holder = secrets.token_hex(16)
        self._database, self._term_s, self._clock = database, term_s, clock
        self._until = float("-inf")

    @property
    def is_held(self) -> bool:
        """Whether it is surely held now, without a look at the database."""
        return self._clock() < self._until

    async def take(self) -> bool:
        """Take it if it is free, or renew it; whether it is held.

        Raises:
            DatabaseAway: nobody knows; :attr:`is_held` says how long it is still.
        """
        asked_at = self._clock()
        taken = await self._database.ado(self._take)
        self._until = asked_at + self._term_s if taken else float("-inf")
        return taken

    async def give_back(self) -> None:
        """Let another process have it at once."""
        self._until = float("-inf")
        await self._database.ado(self._release)

    def _take(self, connection: Connection) -> bool:
        now = database_now(connection)
        mine_or_free = or_(LEASES.c.holder == self.holder, LEASES.c.expires_at <= now)
        taken = update(LEASES).where(LEASES.c.name == "runner", mine_or_free)
        taken = taken.values(holder=self.holder, expires_at=now + self._term_s)
        return connection.execute(taken).rowcount == 1

    def _release(self, connection: Connection) -> None:
        mine = update(LEASES).where(LEASES.c.holder == self.holder)
        connection.execute(mine.values(expires_at=0.0))
