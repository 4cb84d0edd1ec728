# SPDX-License-Identifier: Apache-2.0
"""The journal: what is written stays, what is torn goes, one process at a time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.errors import UsageError
from vllm_batchllm.failpoints import Failpoints
from vllm_batchllm.jobs import journal as journal_module
from vllm_batchllm.jobs.journal import Journal, JournalLockedError

LINES = [json.dumps({"custom_id": f"r{i}", "text": "x" * i}).encode() + b"\n" for i in range(5)]


def read(path: Path) -> list[bytes]:
    journal = Journal(path)
    found = [raw for _, raw, _ in journal.records()]
    journal.close()
    return found


def written(path: Path) -> bytes:
    journal = Journal(path)
    journal.append(LINES)
    journal.close()
    return path.read_bytes()


def test_places_are_where_lines_stand(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    places = journal.append(LINES[:2]) + journal.append(LINES[2:])
    journal.close()
    whole = path.read_bytes()
    assert [whole[at : at + len(line)] for at, line in zip(places, LINES, strict=True)] == LINES
    assert read(path) == LINES


@pytest.mark.parametrize("cut", range(1, len(LINES[-1]) + 1))
def test_a_torn_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    whole = written(path)
    path.write_bytes(whole[: len(whole) - cut])
    assert read(path) == LINES[:-1]
    assert path.read_bytes() == b"".join(LINES[:-1]), "and nothing of it stays"


@given(st.binary(max_size=80), st.integers(0, 4))
def test_whatever_a_crash_leaves_behind_whole_lines_stay(rubbish: bytes, after: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        path.write_bytes(b"".join(LINES[:after]) + rubbish)
        found = read(path)
        assert found[:after] == LINES[:after]
        journal = Journal(path)
        list(journal.records())
        journal.append([LINES[4]])
        journal.close()
        assert read(path)[-1] == LINES[4]


def test_two_processes_cannot_write_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first = Journal(path)
    with pytest.raises(JournalLockedError, match=r"j is being written by another process"):
        Journal(path)
    first.close()
    Journal(path).close()


def test_the_lock_holds_when_it_was_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    journal = Journal(path)
    journal.rewrite(lambda place: place > 0)
    with pytest.raises(JournalLockedError):
        Journal(path)
    assert [raw for _, raw, _ in journal.records()] == LINES[1:]
    journal.append([LINES[0]])
    journal.close()
    assert read(path) == [*LINES[1:], LINES[0]]


@pytest.mark.parametrize("place", ["journal.write", "journal.partial"])
def test_a_full_disk_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append(LINES[:2])
    monkeypatch.setattr(journal_module, "hit", Failpoints(f"{place}=full").hit)
    with pytest.raises(OSError) as caught:
        journal.append(LINES[2:])
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"".join(LINES[:2])
    journal.append(LINES[2:])
    journal.close()
    assert read(path) == LINES


def test_writes_in_pieces_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data)[:3], at))
    assert written(tmp_path / "j") == b"".join(LINES)


@pytest.mark.parametrize("where", ["folder", "missing/j"])
def test_what_cannot_be_a_journal_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(tmp_path / where)
