# SPDX-License-Identifier: Apache-2.0
"""The version of the tables, and the way forward from each that was ever released."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, insert, inspect, select, text, update

from vllm_batchllm.batch_api.tables import LEASES, METADATA, VERSION
from vllm_batchllm.errors import UsageError

Step = Callable[[Connection], None]

STEPS: tuple[Step, ...] = ()
"""Step n leads from version n + 1 to n + 2; a new database begins at the newest."""

LOCK = 0x6261746368  # of PostgreSQL's advisory locks: one process migrates


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> int:
    """Bring the tables to the newest version, in the transaction of ``connection``; that version.

    Raises:
        UsageError: a newer vllm-batchllm has made them.
    """
    newest = len(steps) + 1
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    if not inspect(connection).has_table(VERSION.name):
        METADATA.create_all(connection)
        connection.execute(insert(VERSION).values(id=1, version=newest))
        connection.execute(insert(LEASES).values(name="runner", holder="", expires_at=0.0))
        return newest
    found = int(connection.execute(select(VERSION.c.version)).scalar_one())
    if found > newest:
        raise UsageError(
            f"the database of batches is of version {found}, and this vllm-batchllm knows versions "
            f"up to {newest}: update it, or give another --batch-db"
        )
    for step in steps[found - 1 :]:
        step(connection)
    connection.execute(update(VERSION).values(version=newest))
    return newest
