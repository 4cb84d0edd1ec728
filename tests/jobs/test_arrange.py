# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm arrange`: every line once and as it was, neighbours share what they can, all files or none."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_files import chat_line, many_lines, write_lines
from typer.testing import CliRunner

from vllm_batchllm.cli import app
from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.scan import scan
from vllm_batchllm.jobs import arranged_file
from vllm_batchllm.jobs.arranged_file import arrange_file
from vllm_batchllm.plan.arrange import Arrangement, arrange, part_paths
from vllm_batchllm.plan.line_costs import costs_of
from vllm_batchllm.replicas.cut import cheapest_cuts

EXIT_USAGE = 64
TEXTS = [group * 40 + end for group in ("one ", "two ") for end in ("", "a" * 90, "b" * 90)]
LINES = st.one_of(
    st.builds(
        lambda name, text: json.dumps(chat_line(name, text)).encode(),
        st.sampled_from("abc"),
        st.sampled_from(TEXTS),
    ),
    st.builds(lambda text: json.dumps({"prompt": text}).encode() + b"  ", st.sampled_from(TEXTS)),
    st.sampled_from([b"", b"  ", b"no json", b'{"id": 1}', b'{"prompt": "\xff"}', b"[]\r"]),
)


def lines_of(*paths: Path) -> list[bytes]:
    return b"".join(path.read_bytes() for path in paths).splitlines(keepends=True)


def shuffled(path: Path, num_lines: int) -> Path:
    lines = lines_of(many_lines(path, num_lines))
    random.Random(0).shuffle(lines)
    path.write_bytes(b"".join(lines))
    return path


@given(st.lists(LINES, max_size=12), st.integers(1, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_line_is_there_once_and_as_it_was(
    lines: list[bytes], num_parts: int, ends: bool
) -> None:
    whole = b"\n".join(lines) + (b"\n" if ends else b"")
    wanted = [line + b"\n" for line in whole.split(b"\n") if line.strip()]
    with TemporaryDirectory() as folder:
        path, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        path.write_bytes(whole)
        arrange_file(str(path), output)
        found = output.read_bytes().split(b"\n")
        assert found.pop() == b""
        assert Counter(line + b"\n" for line in found) == Counter(wanted)
        arrange_file(str(path), output, num_parts)
        parts = part_paths(output, num_parts)
        assert b"".join(part.read_bytes() for part in parts) == output.read_bytes()
        assert sorted(Path(folder).iterdir()) == sorted([path, output, *parts])


def test_groups_stand_together_and_what_is_shared_is_told(tmp_path: Path) -> None:
    path, output = shuffled(tmp_path / "in.jsonl", 64), tmp_path / "out.jsonl"
    done = arrange(scan(path))
    told = arrange_file(str(path), output)
    groups = [json.loads(line)["body"]["messages"][0]["content"][:12] for line in lines_of(output)]
    changes = sum(one != other for one, other in zip(groups[1:], groups, strict=False))
    assert changes == len(set(groups)) - 1
    assert done.shared_before < done.shared_after <= done.text_bytes
    assert f"now {done.shared_after / done.text_bytes:.1%}" in told and "64 lines in" in told


def test_parts_are_cut_as_replicas_are_and_the_price_is_told(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "in", [chat_line(f"r{i}", "shared " * 300 + str(i)) for i in range(40)]
    )
    source = scan(path)
    done, whole = arrange(source, 4), arrange(source)
    text_bytes = source.text_bytes[done.order]
    new_bytes = text_bytes - 2048  # where the last whole piece of what all share ends
    new_bytes[0] = text_bytes[0]
    costs = costs_of(text_bytes, new_bytes)
    assert done.edges[:-1].tolist() == cheapest_cuts(costs, 4).tolist()
    assert whole.edges.tolist() == [0, 40] and whole.cut_bytes == 0 and whole.largest == 1
    assert done.cut_bytes == 3 * 2048
    assert 1 <= done.largest < 1.1
    told = arrange_file(str(path), tmp_path / "out", 4)
    assert "4 files" in told and f"{done.cut_bytes / 1e3:,.1f} kB" in told


def test_more_parts_than_lines_are_empty_files(tmp_path: Path) -> None:
    path, output = many_lines(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    told = arrange_file(str(path), output, 5)
    sizes = [part.stat().st_size > 0 for part in part_paths(output, 5)]
    assert sizes == [True, True, False, False, False] and "3 parts are empty" in told
    (tmp_path / "nothing").write_bytes(b"\n\n")
    arrange_file(str(tmp_path / "nothing"), output, 2)
    assert lines_of(*part_paths(output, 2)) == []


def test_names_of_parts() -> None:
    def names(output: str, num_parts: int | None) -> list[str]:
        return [str(path) for path in part_paths(Path(output), num_parts)]

    assert names("d/out.jsonl", None) == ["d/out.jsonl"]
    assert names("d/out.jsonl", 1) == ["d/out-00000-of-00001.jsonl"]
    assert names("a.b.jsonl.gz", 2)[1] == "a.b-00001-of-00002.jsonl.gz"
    assert names("out", 2)[0] == "out-00000-of-00002"


def test_packed_files_and_tables_go_through_the_same_room(tmp_path: Path) -> None:
    plain = shuffled(tmp_path / "in.jsonl", 16)
    arrange_file(str(plain), tmp_path / "plain")
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    arrange_file(str(packed), tmp_path / "out.jsonl.gz")
    unpacked = gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes())
    assert unpacked == (tmp_path / "plain").read_bytes()
    table = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": TEXTS, "id": list(range(6))}), table)
    arrange_file(str(table), tmp_path / "rows")
    prompts = [json.loads(line)["prompt"] for line in lines_of(tmp_path / "rows")]
    assert sorted(prompts) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["in.jsonl", "in.jsonl"], "INPUT and OUTPUT are the same file, in.jsonl"),
        (["in-00001-of-00002.jsonl", "in.jsonl", "--parts", "2"], "are the same file"),
        (["nowhere", "out"], "nowhere cannot be read: No such file"),
        (["in.jsonl", "nowhere/out"], "there is no folder"),
        (["in.jsonl", "out", "--parts", "0"], "--parts 0: there must be 1 part or more"),
        (["in.jsonl", "-"], "standard output cannot be written whole"),
        (["in.jsonl", "out.parquet"], "make no table; name a .jsonl"),
        (["in.jsonl", "out", "--id-column", "x"], "in.jsonl has no columns"),
        (["damaged.gz", "out"], "damaged.gz cannot be read: damaged gzip"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    many_lines(tmp_path / "in.jsonl", 4)
    many_lines(tmp_path / "in-00001-of-00002.jsonl", 4)
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(bytes(1000))[:-9])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = CliRunner().invoke(app, ["arrange", *argv])
    assert done.exit_code == EXIT_USAGE, done.output
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_command_tells_on_standard_error(tmp_path: Path) -> None:
    path = many_lines(tmp_path / "in.jsonl", 8)
    done = CliRunner().invoke(app, ["arrange", str(path), str(tmp_path / "out")])
    assert done.exit_code == 0 and done.stdout == "" and "8 lines in" in done.stderr


def failing(at: int) -> Callable[[int], None]:
    """`os.fsync` of a disk that is full from the ``at``-th time on."""
    times = iter(range(1, 100))

    def fsync(descriptor: int) -> None:
        if next(times) >= at:
            raise OSError(28, "No space left on device")

    return fsync


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_all_files_as_they_were(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = many_lines(tmp_path / "in.jsonl", 16), tmp_path / "out.jsonl"
    (tmp_path / "out-00002-of-00003.jsonl").write_bytes(b"older")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", failing(at))
    named = rf"out-0000{at - 1}-of-00003\.jsonl cannot be written: No space left"
    with pytest.raises(UsageError, match=named):
        arrange_file(str(path), output, 3)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_an_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = many_lines(tmp_path / "in.jsonl", 16), tmp_path / "out.jsonl"

    def meddled(source: object, num_parts: int) -> Arrangement:
        done = arrange(source, num_parts)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes()[:100])
        return done

    monkeypatch.setattr(arranged_file, "arrange_lines", meddled)
    with pytest.raises(UsageError, match=r"in\.jsonl has changed while it was read"):
        arrange_file(str(path), output)
    assert not output.exists()
