# SPDX-License-Identifier: Apache-2.0
"""The tables: files, batches, the lease of who runs them, and the version of all this.

Lines and answers are not here: they are in the contents and in the journals.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

from vllm_batchllm.batch_api.states import MOMENTS

METADATA = MetaData()
_KEY = BigInteger().with_variant(Integer(), "sqlite")

VERSION = Table(
    "batchllm_version",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)

FILES = Table(
    "batchllm_files",
    METADATA,
    Column("seq", _KEY, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("batchllm_files_of", "owner", "seq"),
    sqlite_autoincrement=True,
)

BATCHES = Table(
    "batchllm_batches",
    METADATA,
    Column("seq", _KEY, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("metadata", Text),
    Column("errors", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    *(Column(name, BigInteger) for name in MOMENTS),
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    # Where answers go, from the beginning: whoever finalizes again writes the same files.
    Column("answers_id", String(64), nullable=False),
    Column("failures_id", String(64), nullable=False),
    # How it ends when it is finalized, where that is not `completed`.
    Column("outcome", String(16)),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Index("batchllm_batches_of", "owner", "seq"),
    Index("batchllm_batches_in", "status", "seq"),
    Index("batchllm_batches_on", "input_file_id"),
    sqlite_autoincrement=True,
)

LEASES = Table(
    "batchllm_leases",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expires_at", Float(53), nullable=False),
)
