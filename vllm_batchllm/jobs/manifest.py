# SPDX-License-Identifier: Apache-2.0
"""Which job a journal belongs to: input, model and every option that changes answers. Another one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.files import read_json, write_json
from vllm_batchllm.input.scan import Input
from vllm_batchllm.messages import clip

_FORMAT = 1


def manifest_path(journal: Path) -> Path:
    """Where the manifest of a journal stands: beside it."""
    return journal.with_name(f"{journal.name}.manifest.json")


def check_manifest(journal: Path, source: Input, identity: Mapping[str, str]) -> None:
    """See that ``journal`` is of this job; the first time, write down which it is.

    Raises:
        UsageError: it is of another; names what differs, both values, and the way out.
    """
    path = manifest_path(journal)
    wanted = {
        "format": _FORMAT,
        "input": {"fingerprint": source.fingerprint, "lines": len(source)},
        "identity": dict(identity),
    }
    found = read_json(path)
    if found is None:
        if journal.exists() and journal.stat().st_size:
            raise UsageError(
                f"{journal} is not empty, and no job says that it has written it ({path.name} is "
                "missing or unreadable). Name another output, or begin anew with --restart, which removes it"
            )
        try:
            write_json(path, wanted, "manifest")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        return
    if found.get("format") != _FORMAT:
        raise UsageError(
            f"{path} was written by another version (format {clip(found.get('format'))})"
        )
    _check_input(journal, found.get("input"), wanted["input"], source.path)
    _check_identity(journal, found.get("identity"), identity)


def _check_input(journal: Path, found: object, wanted: object, input_path: Path) -> None:
    if found == wanted:
        return
    raise UsageError(
        f"{input_path} is not the input that {journal} was begun with: its content has changed "
        f"(then {clip(found)}, now {clip(wanted)}). Name another output, or begin anew with --restart"
    )


def _check_identity(journal: Path, found: object, wanted: Mapping[str, str]) -> None:
    then = found if isinstance(found, dict) else {}
    for name in sorted(then.keys() | wanted.keys()):
        if then.get(name) != wanted.get(name):
            raise UsageError(
                f"{journal} was begun with {name} = {clip(then.get(name))}, now it is "
                f"{clip(wanted.get(name))}, which may change answers. Give the same as before, name "
                "another output, or begin anew with --restart"
            )
