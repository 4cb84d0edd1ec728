# SPDX-License-Identifier: Apache-2.0
"""What is asked of the tables, each within the transaction of its caller."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from vllm_batchllm.batch_api import states
from vllm_batchllm.batch_api.lease import is_holder
from vllm_batchllm.batch_api.tables import BATCHES, FILES

Row = dict[str, Any]


def add(connection: Connection, table: Table, row: Row) -> None:
    """Insert ``row``, unless a try whose answer got lost has done so already."""
    there = select(table.c.seq).where(table.c.id == row["id"])
    if connection.execute(there).first() is None:
        connection.execute(insert(table).values(row))


def find(
    connection: Connection, table: Table, name: str, owner: str | None = None, *, lock: bool = False
) -> Row | None:
    """The row of that id, if it is ``owner``'s (None: whoever's); ``lock`` keeps it as it is until
    the transaction ends."""
    asked = select(table).where(table.c.id == name)
    if owner is not None:
        asked = asked.where(table.c.owner == owner)
    row = connection.execute(asked.with_for_update() if lock else asked).mappings().first()
    return None if row is None else dict(row)


def listed(
    connection: Connection,
    table: Table,
    owner: str,
    *,
    limit: int,
    after: int | None = None,
    ascending: bool = False,
    purpose: str | None = None,
) -> tuple[list[Row], bool]:
    """Up to ``limit`` rows of ``owner`` behind ``after`` (a `seq`), and whether there are more."""
    asked = select(table).where(table.c.owner == owner)
    if purpose is not None:
        asked = asked.where(table.c.purpose == purpose)
    if after is not None:
        asked = asked.where(table.c.seq > after if ascending else table.c.seq < after)
    asked = asked.order_by(table.c.seq if ascending else table.c.seq.desc()).limit(limit + 1)
    rows = [dict(row) for row in connection.execute(asked).mappings()]
    return rows[:limit], len(rows) > limit


def forget_file(connection: Connection, name: str) -> None:
    """Forget a file."""
    connection.execute(delete(FILES).where(FILES.c.id == name))


def unfinished_on(connection: Connection, file_id: str) -> str | None:
    """The id of an unfinished batch that reads ``file_id``, if there is one."""
    asked = select(BATCHES.c.id).where(BATCHES.c.input_file_id == file_id)
    asked = asked.where(BATCHES.c.status.in_(states.UNFINISHED)).limit(1)
    return connection.execute(asked).scalar()


def num_unfinished(connection: Connection, owner: str) -> int:
    """How many batches of ``owner`` are not finished."""
    asked = select(func.count()).select_from(BATCHES).where(BATCHES.c.owner == owner)
    asked = asked.where(BATCHES.c.status.in_(states.UNFINISHED))
    return int(connection.execute(asked).scalar_one())


def move(
    connection: Connection, name: str, to: str, now: float, *, holder: str = "", **values: Any
) -> bool:
    """Bring a batch into state ``to``, with ``values``; whether that was made.

    It is not made from a state that ``to`` may not follow, nor, with ``holder``, where somebody
    else holds the lease.
    """
    made = update(BATCHES).where(BATCHES.c.id == name, BATCHES.c.status.in_(states.before(to)))
    if holder:
        made = made.where(is_holder(connection, holder))
    made = made.values(status=to, **{states.moment(to): int(now)}, **values)
    return connection.execute(made).rowcount == 1


def note(connection: Connection, name: str, **values: Any) -> None:
    """Write down something about an unfinished batch: how far it is, how it will end."""
    made = update(BATCHES).where(BATCHES.c.id == name)
    connection.execute(made.where(BATCHES.c.status.in_(states.UNFINISHED)).values(**values))


def next_batches(connection: Connection, limit: int, but: Collection[str] = ()) -> list[Row]:
    """The oldest unfinished batches except ``but``."""
    asked = select(BATCHES).where(BATCHES.c.status.in_(states.UNFINISHED), BATCHES.c.id.not_in(but))
    asked = asked.order_by(BATCHES.c.seq).limit(limit)
    return [dict(row) for row in connection.execute(asked).mappings()]


def of_ids(connection: Connection, names: Collection[str]) -> list[Row]:
    """The batches of these ids."""
    if not names:
        return []
    asked = select(BATCHES).where(BATCHES.c.id.in_(names))
    return [dict(row) for row in connection.execute(asked).mappings()]


def queue(connection: Connection) -> tuple[dict[str, int], int | None]:
    """Unfinished batches by state, and when the oldest of them was created."""
    asked = select(BATCHES.c.status, func.count(), func.min(BATCHES.c.created_at))
    asked = asked.where(BATCHES.c.status.in_(states.UNFINISHED)).group_by(BATCHES.c.status)
    rows = connection.execute(asked).all()
    return {row[0]: row[1] for row in rows}, min((row[2] for row in rows), default=None)


def known_files(connection: Connection, names: Collection[str]) -> set[str]:
    """Which of these contents belong to a file, or will belong to one."""
    files = select(FILES.c.id).where(FILES.c.id.in_(names))
    known = set(connection.execute(files).scalars())
    for column in (BATCHES.c.answers_id, BATCHES.c.failures_id):
        asked = select(column).where(column.in_(names), BATCHES.c.status.in_(states.UNFINISHED))
        known |= set(connection.execute(asked).scalars())
    return known
