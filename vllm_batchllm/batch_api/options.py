# SPDX-License-Identifier: Apache-2.0
"""What ``vllm serve --enable-batch-api`` is told: its options, and which combinations are refused."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_batchllm.compat.names import is_ours

FLAG = "--enable-batch-api"
DATABASE_NAME = "batches.sqlite3"
PACKAGES = {"sqlalchemy": "SQLAlchemy", "python_multipart": "python-multipart"}
"""Modules that the Batch API needs beyond vLLM's, and the names of their distributions."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The options of one server.

    directory: holds contents, journals and, by default, the database. database_url: of SQLAlchemy.
    max_file_bytes: of an uploaded file. max_requests: lines of one batch. max_queued: unfinished
    batches of one owner. concurrency: batches that run at once. priority: that of batch lines,
    larger is later.
    """

    directory: Path
    database_url: str
    max_file_bytes: int = 200 << 20
    max_requests: int = 50_000
    max_queued: int = 1000
    concurrency: int = 2
    priority: int = 1000

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> BatchOptions:
        """The options in the parsed command line of a server with the Batch API."""
        directory = Path(args.batch_dir).expanduser().absolute()
        return cls(
            directory=directory,
            database_url=args.batch_db or f"sqlite:///{directory / DATABASE_NAME}",
            max_file_bytes=args.batch_max_file_mb << 20,
            max_requests=args.batch_max_requests,
            max_queued=args.batch_max_queued,
            concurrency=args.batch_concurrency,
            priority=args.batch_priority,
        )


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none; names the value.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number from 1 on")
    return value


def add_arguments(parser: Any) -> None:
    """Add ``--enable-batch-api`` and what belongs to it to the parser of ``vllm serve``."""
    group = parser.add_argument_group(
        "BatchAPI", "OpenAI's Batch API on this server, by vllm-batchllm (docs/batch-api.md)."
    )
    add = group.add_argument
    add(FLAG, action="store_true", help="Serve /v1/files and /v1/batches.")
    add("--batch-dir", metavar="DIR", help="Folder of files, journals and the database.")
    add(
        "--batch-db",
        metavar="URL",
        help=f"Database of batches, as SQLAlchemy names it; by default SQLite in DIR/{DATABASE_NAME}.",
    )
    numbers = {
        "--batch-max-file-mb": (200, "Largest file that may be uploaded, MiB."),
        "--batch-max-requests": (50_000, "Most lines of one batch."),
        "--batch-max-queued": (1000, "Most unfinished batches of one API key."),
        "--batch-concurrency": (2, "Batches that run at once."),
        "--batch-priority": (1000, "Priority of batch lines; larger is later, interactive is 0."),
    }
    for name, (default, text) in numbers.items():
        add(name, type=positive, default=default, metavar="N", help=f"{text} Default {default}.")


def refusal(args: argparse.Namespace) -> str | None:
    """Why a parsed command line with ``--enable-batch-api`` cannot be served; None if it can.

    Names the option, and the way out.
    """
    if getattr(args, "subparser", None) == "launch":
        return f"{FLAG} needs an engine: use it with `vllm serve`"
    if not is_ours(args.scheduler_cls):
        return f"{FLAG} needs vllm-batchllm's scheduler: add --scheduler batchllm"
    if not args.batch_dir:
        return f"{FLAG} needs a folder for files and journals: add --batch-dir DIR"
    for name in ("headless", "grpc"):
        if getattr(args, name, False):
            return f"{FLAG} cannot be served with --{name}, which serves no HTTP: leave one out"
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        return f"{FLAG} needs vLLM's Python front end: unset VLLM_USE_RUST_FRONTEND"
    missing = [PACKAGES[name] for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"{FLAG} needs {' and '.join(missing)}: pip install vllm-batchllm[batch-api]"
    return None


def stray_options(args: argparse.Namespace) -> str | None:
    """Why options of the Batch API without its flag are refused; None where there are none."""
    given = [
        f"--{name.replace('_', '-')}" for name in ("batch_dir", "batch_db") if getattr(args, name)
    ]
    if not given:
        return None
    return f"{' and '.join(given)} does nothing without {FLAG}: add it"
