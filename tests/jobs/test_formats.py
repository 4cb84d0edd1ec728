# SPDX-License-Identifier: Apache-2.0
"""Files around a batch job: what is read as INPUT, and OUTPUT, which is there whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input import parquet_source, source
from vllm_batchllm.input.source import Columns, open_source
from vllm_batchllm.jobs import finish, parquet_finish
from vllm_batchllm.jobs.finish import FinalOrder, check_output, write_final

NONE = Columns()
LINES = b"".join(b'{"prompt": "%d"}\n' % number for number in range(5000))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CHAT = pa.list_(
    pa.struct({"role": pa.string(), "parts": pa.list_(pa.struct({"n": pa.list_(pa.int8())}))})
)
HELLO = [{"role": "user", "content": "hello"}]
few = settings(max_examples=25, deadline=None)


def frames(data: bytes) -> bytes:
    """Two frames of zstd with one to be skipped between them."""
    half, pack = len(data) // 2, zstandard.ZstdCompressor().compress
    skipped = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc"
    return pack(data[:half]) + skipped + pack(data[half:])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    ".zst": frames,
    ".zstd": zstandard.ZstdCompressor().compress,
}


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def rows(path: Path, folder: Path, columns: Columns = NONE) -> list[dict[str, Any]]:
    """The plain lines that are made of a file."""
    spool = open_source(str(path), folder / "spool", columns)
    return [json.loads(line) for line in spool.read_bytes().splitlines()]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet", "pyarrow.types", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)


class TestPackedInput:
    def test_a_plain_file_is_read_where_it_lies(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(LINES)
        assert open_source(str(path), tmp_path / "spool", NONE) == path
        assert left_in(tmp_path) == {"in.jsonl"}

    @few
    @given(data=st.binary(min_size=1, max_size=100_000), suffix=st.sampled_from(sorted(PACKERS)))
    def test_what_was_packed_is_unpacked(
        self, data: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("packed")
        path = folder / f"in.jsonl{suffix.upper()}"
        path.write_bytes(PACKERS[suffix](data))
        assert open_source(str(path), folder / "spool", NONE).read_bytes() == data
        assert left_in(folder) == {path.name, "spool", "spool.json"}

    @pytest.mark.parametrize("suffix", sorted(PACKERS))
    @pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.9999])
    def test_a_file_that_was_cut_off_is_refused(
        self, suffix: str, kept: float, tmp_path: Path
    ) -> None:
        path = tmp_path / f"in{suffix}"
        packed = PACKERS[suffix](LINES)
        path.write_bytes(packed[: int(kept * len(packed))])
        with pytest.raises(UsageError, match=rf"in{suffix} cannot be read: (damaged|it is empty)"):
            open_source(str(path), tmp_path / "spool", NONE)
        assert left_in(tmp_path) == {path.name}

    @pytest.mark.parametrize("suffix", sorted(PACKERS))
    @pytest.mark.parametrize("data", [LINES, b"\0", b"{}\n"])
    def test_a_file_that_is_not_packed_is_refused(
        self, suffix: str, data: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / f"in{suffix}"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=rf"in{suffix} cannot be read: damaged"):
            open_source(str(path), tmp_path / "spool", NONE)

    @pytest.mark.parametrize("suffix", sorted(PACKERS))
    def test_garbage_behind_is_refused(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"in{suffix}"
        path.write_bytes(PACKERS[suffix](LINES) + b"garbage")
        with pytest.raises(UsageError, match="damaged"):
            open_source(str(path), tmp_path / "spool", NONE)

    @pytest.mark.parametrize("suffix", ["", *PACKERS, ".parquet"])
    def test_missing_and_directory(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"in{suffix}"
        with pytest.raises(UsageError, match=rf"in{suffix} cannot be read: No such file"):
            open_source(str(path), tmp_path / "spool", NONE)
        path.mkdir()
        with pytest.raises(UsageError, match="it is a directory"):
            open_source(str(path), tmp_path / "spool", NONE)

    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".parquet"])
    def test_no_rights(self, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / f"in{suffix}"
        path.write_bytes(LINES)
        opened = Path.open

        def refusing(self: Path, *args: Any) -> Any:
            if self == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(self, *args)

        monkeypatch.setattr(Path, "open", refusing)  # root, which may run this, may read anything
        with pytest.raises(UsageError, match=rf"in{suffix} cannot be read: Permission denied"):
            open_source(str(path), tmp_path / "spool", NONE)

    @pytest.mark.parametrize("suffix", [".zst", ".parquet"])
    @pytest.mark.usefixtures("no_package")
    def test_a_package_that_is_missing_is_named(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"in{suffix}"
        path.write_bytes(LINES)
        with pytest.raises(UsageError, match=r"in\S+: a .* needs .* vllm-batchllm\[jobs\]"):
            open_source(str(path), tmp_path / "spool", NONE)
        with pytest.raises(UsageError, match=r"needs .* vllm-batchllm\[jobs\]"):
            check_output(tmp_path / f"out{suffix}")

    def test_columns_belong_to_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(LINES)
        with pytest.raises(UsageError, match=r"--id-column 'key': .*in\.jsonl has no columns"):
            open_source(str(path), tmp_path / "spool", Columns(id="key"))


class TestStreams:
    def test_standard_input_is_read_each_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = tmp_path / "spool"
        (tmp_path / "spool.json").write_text("{}")
        for data in (LINES, b"", b"other\n"):
            stream = io.BytesIO(data)
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
            assert open_source("-", spool, NONE).read_bytes() == data
            assert left_in(tmp_path) == {"spool"}
            assert not stream.closed

    def test_closed_standard_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(UsageError, match="standard input cannot be read"):
            open_source("-", tmp_path / "spool", NONE)

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_a_pipe_is_spooled(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"pipe{suffix}"
        os.mkfifo(path)
        data = PACKERS[suffix](LINES) if suffix else LINES
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        assert open_source(str(path), tmp_path / "spool", NONE).read_bytes() == LINES
        writer.join()
        assert left_in(tmp_path) == {path.name, "spool"}

    def test_a_pipe_is_no_parquet(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.parquet")
        with pytest.raises(UsageError, match="Parquet is not read from pipes"):
            open_source(str(tmp_path / "pipe.parquet"), tmp_path / "spool", NONE)


class TestSpool:
    @pytest.fixture
    def packed(self, tmp_path: Path) -> Path:
        path = tmp_path / "in.gz"
        path.write_bytes(gzip.compress(LINES))
        return path

    def spooled(self, packed: Path, columns: Columns = NONE) -> int:
        """Which file the spool is: another one if it was made anew."""
        return open_source(str(packed), packed.parent / "spool", columns).stat().st_ino

    def test_it_is_used_again(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.spooled(packed)
        assert self.spooled(packed) == before
        monkeypatch.chdir(packed.parent)
        assert self.spooled(Path("in.gz")) == before

    @pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"source": 1}'])
    def test_a_note_that_says_otherwise(self, note: bytes, packed: Path) -> None:
        self.spooled(packed)
        path = packed.parent / "spool.json"
        good = path.read_bytes()
        path.write_bytes(note)
        self.spooled(packed)
        assert path.read_bytes() == good

    def test_another_source_or_spool_is_read_anew(self, packed: Path) -> None:
        spool = packed.parent / "spool"
        self.spooled(packed)
        packed.write_bytes(gzip.compress(b"other\n"))
        self.spooled(packed)
        assert spool.read_bytes() == b"other\n"
        spool.write_bytes(b"oth")
        self.spooled(packed)
        assert spool.read_bytes() == b"other\n"

    def test_other_columns_are_read_anew(self, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"a": ["x"], "b": ["y"]})
        assert rows(path, tmp_path, Columns("a")) == [{"id": 0, "prompt": "x"}]
        assert rows(path, tmp_path, Columns("b")) == [{"id": 0, "prompt": "y"}]

    def test_a_source_that_changes_meanwhile(
        self, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def changing(path: Path) -> Iterator[bytes]:
            yield b"first"
            os.utime(path, ns=(1, 1))

        monkeypatch.setattr(source, "_gzip_chunks", changing)
        with pytest.raises(UsageError, match=r"in\.gz has changed while it was read"):
            self.spooled(packed)
        assert left_in(packed.parent) == {"in.gz"}

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
    def test_an_old_spool_outlives_a_failure_without_its_note(
        self, interruption: Any, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.spooled(packed)
        os.utime(packed, ns=(1, 1))

        def failing(descriptor: int) -> None:
            raise interruption

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises((UsageError, KeyboardInterrupt)):
            self.spooled(packed)
        assert left_in(packed.parent) == {"in.gz", "spool"}

    def test_no_folder(self, packed: Path) -> None:
        with pytest.raises(UsageError, match="no/spool cannot be written: No such file"):
            open_source(str(packed), packed.parent / "no" / "spool", NONE)


class TestParquetInput:
    @few
    @given(
        prompts=st.lists(st.none() | TEXTS, max_size=40),
        kind=st.sampled_from(
            [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
        ),
        group=st.integers(1, 9),
    )
    def test_prompts_come_out_as_they_are(
        self,
        prompts: list[str | None],
        kind: Any,
        group: int,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        folder = tmp_path_factory.mktemp("parquet")
        columns = {"prompt": pa.array(prompts, kind)}
        path = table(folder / "in.parquet", columns, row_group_size=group)
        expected = [{"id": n, "prompt": prompt} for n, prompt in enumerate(prompts)]
        found = rows(path, folder)
        assert [{"prompt": None, **row} for row in found] == expected
        assert [("prompt" in row) for row in found] == [prompt is not None for prompt in prompts]

    def test_more_rows_than_a_batch(self, tmp_path: Path) -> None:
        texts = [f"text {n}" for n in range(3 * parquet_source.BATCH_ROWS + 1)]
        path = table(tmp_path / "in.parquet", {"prompt": texts}, row_group_size=1500)
        assert rows(path, tmp_path) == [{"id": n, "prompt": t} for n, t in enumerate(texts)]

    @pytest.mark.parametrize("as_text", [False, True])
    def test_messages_as_structs_and_as_text(self, as_text: bool, tmp_path: Path) -> None:
        called = {"role": "assistant", "tool_calls": [{"id": "a"}]}
        chats = [HELLO, [*HELLO, called], None, []]
        texts = [None if chat is None else json.dumps(chat, indent=1) for chat in chats]
        values = texts if as_text else chats
        found = rows(table(tmp_path / "in.parquet", {"messages": values}), tmp_path)
        expected: list[dict[str, Any]] = [
            {"id": n, "messages": chat} for n, chat in enumerate(chats)
        ]
        del expected[2]["messages"]
        assert found == expected

    @pytest.mark.parametrize("text", ["[", "[" * 10_000, "hello", "9" * 5000])
    def test_a_text_that_is_no_json_is_left_to_the_line(self, text: str, tmp_path: Path) -> None:
        found = rows(table(tmp_path / "in.parquet", {"messages": [text]}), tmp_path)
        assert found == [{"id": 0, "messages": text}]

    def test_token_ids_and_nested_lists(self, tmp_path: Path) -> None:
        ids = pa.array([[1, 2], None], pa.large_list(pa.int32()))
        path = table(tmp_path / "a.parquet", {"prompt": ids})
        assert rows(path, tmp_path) == [{"id": 0, "prompt": [1, 2]}, {"id": 1}]
        path = table(tmp_path / "b.parquet", {"prompt": [[[1, 2]]]})
        assert rows(path, tmp_path) == [{"id": 0, "prompt": [[1, 2]]}]

    def test_ids_and_sampling_parameters_go_along(self, tmp_path: Path) -> None:
        columns = {
            "key": ["a", None, "c"],
            "the.text": ["x", "y", "z"],
            "max_tokens": [3, None, 5],
            "temperature": [0.5, 0.25, None],
            "stop": [["a", "b"], None, []],
            "model": ["m", None, None],
            "other": [1, 2, 3],
        }
        path = table(tmp_path / "in.parquet", columns)
        assert rows(path, tmp_path, Columns("the.text", id="key")) == [
            {"id": "a", "prompt": "x", "max_tokens": 3, "temperature": 0.5, "stop": ["a", "b"],
             "model": "m"},
            {"id": 1, "prompt": "y", "temperature": 0.25},
            {"id": "c", "prompt": "z", "max_tokens": 5, "stop": []},
        ]  # fmt: skip

    def test_a_column_serves_once(self, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"model": ["x"], "seed": [7], "n": [2]})
        found = rows(path, tmp_path, Columns("model", id="seed"))
        assert found == [{"id": 7, "prompt": "x", "n": 2}]

    @pytest.mark.parametrize(
        ("columns", "told"),
        [
            (Columns("no"), r"--prompt-column 'no': .*no such column; its columns: 'a', 'number'"),
            (Columns(messages="no"), "--messages-column 'no': .*no such column"),
            (Columns("a", id="no"), "--id-column 'no': .*no such column"),
            (Columns("a", "number"), "exclude each other"),
            (Columns("number"), "--prompt-column 'number': .*holds double, not texts"),
            (Columns("a", id="number"), "--id-column 'number': .*holds double, not texts or whole"),
            (NONE, 'neither a column "prompt" nor one "messages": .*; its columns: '),
        ],
    )
    def test_columns_that_cannot_be_read(self, columns: Columns, told: str, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"a": ["x"], "number": [0.5]})
        with pytest.raises(UsageError, match=told):
            open_source(str(path), tmp_path / "spool", columns)
        assert left_in(tmp_path) == {"in.parquet"}

    def test_a_name_twice_and_two_candidates(self, tmp_path: Path) -> None:
        twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
        pq.write_table(twice, tmp_path / "a.parquet")
        with pytest.raises(UsageError, match="has 2 columns of this name"):
            open_source(str(tmp_path / "a.parquet"), tmp_path / "spool", Columns("a"))
        path = table(tmp_path / "b.parquet", {"prompt": ["x"], "messages": ["[]"]})
        with pytest.raises(UsageError, match='both a column "prompt" and one "messages"'):
            open_source(str(path), tmp_path / "spool", NONE)

    def test_text_that_is_no_utf8_costs_its_line_only(self, tmp_path: Path) -> None:
        wrong = pa.array([b"good", b"\xff"]).view(pa.string())
        path = table(tmp_path / "in.parquet", {"prompt": wrong})
        found = rows(path, tmp_path)
        assert found == [{"id": 0, "prompt": "good"}, {"id": 1, "prompt": "\udcff"}]

    @pytest.mark.parametrize("data", [b"", b"PAR1", LINES, b"PAR1" + LINES + b"PAR1"])
    def test_no_parquet_file(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"in\.parquet cannot be read: "):
            open_source(str(path), tmp_path / "spool", NONE)
        assert left_in(tmp_path) == {"in.parquet"}

    def test_a_name_that_is_no_utf8(self, tmp_path: Path) -> None:
        columns = {"prompt": ["x"], "other": [1]}
        path = table(tmp_path / "in.parquet", columns, store_schema=False)
        path.write_bytes(path.read_bytes().replace(b"other", b"\xffther"))
        with pytest.raises(UsageError, match="damaged Parquet: a name in it"):
            open_source(str(path), tmp_path / "spool", NONE)

    def test_damaged_pages(self, tmp_path: Path) -> None:
        texts = [f"{n} text" for n in range(20_000)]
        path = table(tmp_path / "in.parquet", {"prompt": texts}, write_page_checksum=True)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"in\.parquet cannot be read: damaged Parquet: "):
            open_source(str(path), tmp_path / "spool", NONE)
        assert left_in(tmp_path) == {"in.parquet"}


def answer(number: int, **changes: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": number, "completion_tokens": 2 * number}
    record = {"id": number, "text": f"answer {number}\n", "finish_reason": "stop"}
    return {**record, "usage": usage, "error": None, **changes}


REFUSED = answer(3, text=None, finish_reason=None, usage=None,
                 error={"code": "bad_request", "message": "it is empty"})  # fmt: skip


def journal_of(folder: Path, answers: Sequence[dict[str, Any] | None]) -> tuple[Path, FinalOrder]:
    """A journal in an order of its own, with a torn line at its end, and the input's order."""
    offsets, lengths = (np.full(len(answers), -1, dtype=np.int64) for _ in range(2))
    journal = folder / "journal"
    shuffled = [n for n, each in enumerate(answers) if each is not None]
    random.Random(0).shuffle(shuffled)
    with journal.open("wb") as file:
        for n in shuffled:
            line = json.dumps(answers[n], ensure_ascii=n % 2 == 0).encode()
            offsets[n], lengths[n] = file.tell(), len(line) + n % 2
            file.write(line + b"\n")
        file.write(b'{"id": 99, "te')
    return journal, FinalOrder(offsets, lengths)


UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    "": bytes,
    ".gz": gzip.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


class TestLinesOut:
    @few
    @given(
        texts=st.lists(st.none() | TEXTS, max_size=30), suffix=st.sampled_from(sorted(UNPACKERS))
    )
    def test_answers_are_in_the_order_of_the_input(
        self, texts: list[str | None], suffix: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("lines")
        answers = [None if t is None else answer(n, text=t) for n, t in enumerate(texts)]
        journal, order = journal_of(folder, answers)
        output = folder / f"out{suffix}"
        output.write_bytes(b"old")
        write_final(journal, output, order)
        lines = UNPACKERS[suffix](output.read_bytes()).splitlines(keepends=True)
        assert all(line.endswith(b"\n") for line in lines)
        assert [json.loads(line) for line in lines] == [
            each for each in answers if each is not None
        ]
        assert left_in(folder) == {"journal", output.name}

    def test_what_is_written_can_be_read_as_input(self, tmp_path: Path) -> None:
        journal, order = journal_of(tmp_path, [answer(n) for n in range(3000)])
        for suffix in (".gz", ".zst"):
            output = tmp_path / f"out{suffix}"
            write_final(journal, output, order)
            assert [row["id"] for row in rows(output, tmp_path)] == list(range(3000))

    def test_what_a_killed_process_left_is_no_obstacle(self, tmp_path: Path) -> None:
        journal, order = journal_of(tmp_path, [answer(0)])
        (tmp_path / ".out.partial").write_bytes(b"half")
        write_final(journal, tmp_path / "out", order)
        assert left_in(tmp_path) == {"journal", "out"}

    def test_two_that_write_the_same_do_not_mix(self, tmp_path: Path) -> None:
        path = tmp_path / "out"
        with (
            pytest.raises(UsageError, match="written by another process as well"),
            source.written_whole(path, "output") as first,
        ):
            first.write(b"first")
            with source.written_whole(path, "output") as second:
                second.write(b"second")
            (tmp_path / ".out.partial").write_bytes(b"a third one has begun")
        assert path.read_bytes() == b"second"

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        journal, order = journal_of(tmp_path, [answer(0)])
        (tmp_path / "link").symlink_to(tmp_path / "there")
        write_final(journal, tmp_path / "link", order)
        assert (tmp_path / "link").is_symlink()
        assert json.loads((tmp_path / "there").read_bytes()) == answer(0)

    @pytest.mark.parametrize("suffix", [*UNPACKERS, ".parquet"])
    @pytest.mark.parametrize("shift", [-2, 1, 10**6])
    def test_a_journal_that_holds_something_else(
        self, suffix: str, shift: int, tmp_path: Path
    ) -> None:
        journal, order = journal_of(tmp_path, [answer(n) for n in range(9)])
        order.lengths[5] += shift
        output = tmp_path / f"out{suffix}"
        with pytest.raises(UsageError, match=r"journal is damaged: no answer of .* stands at byte"):
            write_final(journal, output, order)
        assert left_in(tmp_path) == {"journal"}

    @pytest.mark.parametrize("suffix", [*UNPACKERS, ".parquet"])
    def test_a_journal_that_is_missing(self, suffix: str, tmp_path: Path) -> None:
        journal, order = journal_of(tmp_path, [answer(0)])
        journal.unlink()
        with pytest.raises(UsageError, match="journal cannot be read: No such file"):
            write_final(journal, tmp_path / f"out{suffix}", order)


class FullDisk(io.FileIO):
    """A file on a disk that takes so many bytes and no more."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
class TestFullDisk:
    @pytest.fixture(params=[0, 100, 50_000])
    def room(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = Path.open

        def limited(self: Path, mode: str = "r", *args: Any) -> Any:
            if mode != "x+b":
                return opened(self, mode, *args)
            file = FullDisk(self, mode)
            file.room = request.param
            return io.BufferedWriter(file, 4096)

        monkeypatch.setattr(Path, "open", limited)

    @pytest.mark.parametrize("suffix", [*UNPACKERS, ".parquet"])
    @pytest.mark.usefixtures("room")
    def test_output_and_journal_stay(self, suffix: str, tmp_path: Path) -> None:
        noise = random.Random(0)
        answers = [answer(n, text=noise.randbytes(300).hex()) for n in range(2000)]
        journal, order = journal_of(tmp_path, answers)
        before = journal.read_bytes()
        output = tmp_path / f"out{suffix}"
        output.write_bytes(b"old")
        with pytest.raises(UsageError, match=rf"out{suffix} cannot be written: No space left"):
            write_final(journal, output, order)
        assert (output.read_bytes(), journal.read_bytes()) == (b"old", before)
        assert left_in(tmp_path) == {"journal", output.name}

    @pytest.mark.usefixtures("room")
    def test_no_spool_stays(self, tmp_path: Path) -> None:
        for suffix in (".gz", ".zst"):
            path = tmp_path / f"in{suffix}"
            path.write_bytes(PACKERS[suffix](LINES))
            with pytest.raises(UsageError, match="spool cannot be written: No space left"):
                open_source(str(path), tmp_path / "spool", NONE)
            path.unlink()
            assert left_in(tmp_path) == set()


class TestParquetOut:
    OURS = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "error")

    def written(self, folder: Path, answers: Sequence[Any], input_: Path | None = None) -> Any:
        journal, order = journal_of(folder, answers)
        write_final(journal, folder / "out.parquet", order, input_)
        return pq.read_table(folder / "out.parquet")

    def test_answers_alone(self, tmp_path: Path) -> None:
        found = self.written(tmp_path, [answer(0), None, answer(2), REFUSED])
        assert found.schema.names == ["id", *self.OURS]
        assert found.schema.field("id").type == pa.int64()
        assert found.to_pylist()[1:] == [
            {"id": 2, "text": "answer 2\n", "finish_reason": "stop", "prompt_tokens": 2,
             "completion_tokens": 4, "error": None},
            {"id": 3, "text": None, "finish_reason": None, "prompt_tokens": None,
             "completion_tokens": None, "error": "bad_request: it is empty"},
        ]  # fmt: skip

    def test_ids_of_several_kinds_are_texts(self, tmp_path: Path) -> None:
        answers = [answer(0), answer(1, id="b"), answer(2, id=2**70), answer(3, id=None)]
        found = self.written(tmp_path, answers)
        assert found["id"].to_pylist() == ["0", "b", str(2**70), None]

    def test_no_answer_at_all(self, tmp_path: Path) -> None:
        assert self.written(tmp_path, []).num_rows == 0

    def test_several_choices_are_kept(self, tmp_path: Path) -> None:
        choices = [{"text": "ä"}, {"text": "b"}]
        found = self.written(tmp_path, [answer(0, choices=choices), answer(1)])
        assert found.schema.names == ["id", *self.OURS, "choices"]
        assert [each and json.loads(each) for each in found["choices"].to_pylist()] == [
            choices,
            None,
        ]

    def test_a_text_that_only_quotes_choices(self, tmp_path: Path) -> None:
        found = self.written(tmp_path, [answer(0, text='{"choices": []}')])
        assert found.schema.names == ["id", *self.OURS]

    def test_half_a_surrogate_pair(self, tmp_path: Path) -> None:
        found = self.written(tmp_path, [answer(0, text="a\ud800"), answer(2, text=None)])
        assert found["text"].to_pylist() == ["a?", None]

    @few
    @given(data=st.data(), num_rows=st.integers(0, 50), group=st.integers(1, 20))
    def test_beside_the_columns_of_the_input(
        self, data: Any, num_rows: int, group: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("beside")
        texts = data.draw(st.lists(TEXTS, min_size=num_rows, max_size=num_rows))
        columns = {
            "prompt": pa.array(texts, pa.large_string()),
            "kind": pa.array([t[:1] for t in texts], pa.dictionary(pa.int32(), pa.string())),
            "chat": pa.array([[{"role": t, "parts": [{"n": [1]}]}] for t in texts], CHAT),
            "map": pa.array([[("key", t)] for t in texts], pa.map_(pa.string(), pa.string())),
            "when": pa.array(range(num_rows), pa.timestamp("us", tz="UTC")),
        }  # fmt: skip
        before = pa.table(columns).replace_schema_metadata({"from": "here"})
        pq.write_table(before, folder / "in.parquet", row_group_size=group)
        has = data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows))
        answers = [answer(n) if each else None for n, each in enumerate(has)]
        found = self.written(folder, answers, folder / "in.parquet")
        assert found.select(before.schema.names).equals(before)
        assert found.schema.metadata[b"from"] == b"here"
        assert found.schema.names == [*before.schema.names, *self.OURS]
        assert found["prompt_tokens"].to_pylist() == [n if h else None for n, h in enumerate(has)]
        assert found["error"].to_pylist() == [None if h else "no answer" for h in has]

    def test_many_rows_are_written_in_groups(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_finish, "_GROUP_BYTES", 200_000)
        texts = [f"{n}" * 10 for n in range(5000)]
        kinds = pa.array([t[:3] for t in texts]).dictionary_encode()
        path = table(tmp_path / "in.parquet", {"prompt": texts, "kind": kinds}, row_group_size=700)
        found = self.written(tmp_path, [answer(n) for n in range(5000)], path)
        assert found["prompt"].to_pylist() == texts
        assert found["kind"].to_pylist() == kinds.to_pylist()
        assert found["prompt_tokens"].to_pylist() == list(range(5000))
        assert 1 < pq.ParquetFile(tmp_path / "out.parquet").num_row_groups < 5

    def test_names_that_are_taken(self, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"text": ["x"], "error": [1]})
        check_output(tmp_path / "out.parquet", path)
        found = self.written(tmp_path, [answer(0)], path)
        assert found.to_pylist() == [
            {"text": "x", "error": 1, "answer_text": "answer 0\n", "finish_reason": "stop",
             "prompt_tokens": 0, "completion_tokens": 0, "answer_error": None}
        ]  # fmt: skip
        table(path, {"text": ["x"], "answer_text": ["y"]})
        with pytest.raises(UsageError, match="has a column 'answer_text'"):
            check_output(tmp_path / "out.parquet", path)

    def test_an_input_of_another_length(self, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"prompt": ["x"] * 3})
        with pytest.raises(
            UsageError, match="has 3 rows, but the job read 2: the file has changed"
        ):
            self.written(tmp_path, [answer(0), answer(1)], path)
        assert left_in(tmp_path) == {"in.parquet", "journal"}

    def test_a_journal_of_no_json(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        journal.write_bytes(b"{no}\n")
        with pytest.raises(UsageError, match=r"journal is damaged: b'\{no\}' is no answer"):
            write_final(journal, tmp_path / "out.parquet", FinalOrder(np.array([0]), np.array([5])))


class TestOutputCheckedBefore:
    def test_what_can_be_written(self, tmp_path: Path) -> None:
        for suffix in (*UNPACKERS, ".parquet"):
            check_output(tmp_path / f"out{suffix}")

    def test_folder_and_device(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        for path in (tmp_path / "folder", Path("/dev/null")):
            with pytest.raises(UsageError, match="no regular file"):
                check_output(path)
            with (
                pytest.raises(UsageError, match="no regular file"),
                source.written_whole(path, "output"),
            ):
                pass
        with pytest.raises(UsageError, match=r"there is no folder .*no; make it first"):
            check_output(tmp_path / "no" / "out")

    def test_no_rights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(finish.os, "access", lambda *_: False)
        with pytest.raises(UsageError, match="no right to write into"):
            check_output(tmp_path / "out")

    def test_input_and_journal_are_not_written_over(self, tmp_path: Path) -> None:
        path = table(tmp_path / "in.parquet", {"prompt": ["x"]})
        with pytest.raises(UsageError, match="is both OUTPUT and INPUT"):
            check_output(path, path)
        journal, order = journal_of(tmp_path, [answer(0)])
        with pytest.raises(UsageError, match="is both OUTPUT and the journal"):
            write_final(journal, journal, order)
