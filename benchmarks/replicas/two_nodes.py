# SPDX-License-Identifier: Apache-2.0
"""Two Ray nodes in two network namespaces of this machine, one of which is taken away in the middle of a job.

    sudo python benchmarks/replicas/two_nodes.py --out benchmarks/results/replicas

Makes namespaces with addresses of their own, starts a node of one CPU in each, runs `vllm-batchllm run --replicas 2 --ray-address` in
the first, and kills everything in the second once lines are answered; later the node comes back, if the job still runs. The answers
are compared with a job on one engine. Needs root and `ip`. Writes `two_nodes.json` and `two_nodes.md`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "jobs")]

from kills import OPTIONS, answers, command, whole_lines, write_input
from replica_kills import ENVIRONMENT, start, wait_for

FIRST, SECOND = "batchllm-a", "batchllm-b"
ADDRESSES = {FIRST: "10.77.0.1", SECOND: "10.77.0.2"}
PORT = 6399


def ip(*words: str) -> None:
    """One command of `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def namespaces() -> Iterator[None]:
    """Two, joined by a cable."""
    try:
        for name in ADDRESSES:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "cable-a",
            "netns",
            FIRST,
            "type",
            "veth",
            "peer",
            "name",
            "cable-b",
            "netns",
            SECOND,
        )
        for name, cable in ((FIRST, "cable-a"), (SECOND, "cable-b")):
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{ADDRESSES[name]}/24", "dev", cable)
            ip(*inside, "link", "set", cable, "up")
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "route", "add", "default", "dev", cable)
        yield
    finally:
        for name in ADDRESSES:
            kill_all(name)
            subprocess.run(["ip", "netns", "del", name], check=False)


def kill_all(name: str) -> int:
    """Kill whatever runs in a namespace; returns how much that was."""
    listed = subprocess.run(
        ["ip", "netns", "pids", name], check=False, capture_output=True, text=True
    ).stdout
    pids = listed.split()
    for pid in pids:
        subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
    return len(pids)


def inside(name: str, words: list[str]) -> list[str]:
    """A command in a namespace."""
    return ["ip", "netns", "exec", name, *words]


def start_node(name: str, folder: Path) -> None:
    """A Ray node of one CPU."""
    address = ADDRESSES[name]
    head = name == FIRST
    where = ["--head", f"--port={PORT}"] if head else [f"--address={ADDRESSES[FIRST]}:{PORT}"]
    words = command("ray", "start", *where, f"--node-ip-address={address}", "--num-cpus=1")
    words += ["--object-store-memory=200000000", "--disable-usage-stats"]
    words += ["--include-dashboard=false", f"--temp-dir={folder}"] if head else []
    subprocess.run(
        inside(name, words), check=True, env=ENVIRONMENT, capture_output=True, timeout=120
    )


def job_with_a_lost_node(path: Path, output: Path, folder: Path) -> dict[str, Any]:
    """Run the job; take the second node away once a fifth is answered, and bring it back."""
    num_lines = len(path.read_bytes().splitlines())
    with namespaces():
        start_node(FIRST, folder)
        start_node(SECOND, folder)
        log = folder / "job.log"
        words = command("vllm-batchllm", "run", path, output, *OPTIONS, "--max-num-seqs", "8")
        words += ["--replicas", "2", "--ray-address", f"{ADDRESSES[FIRST]}:{PORT}"]
        with log.open("ab") as stream:
            environment = ENVIRONMENT | {"VLLM_HOST_IP": ADDRESSES[FIRST]}
            process = subprocess.Popen(inside(FIRST, words), stderr=stream, env=environment)
        assert wait_for(output, num_lines // 5, process), log.read_text()[-4000:]
        both = log.read_text().count("batchllm-replica-1")
        num_killed = kill_all(SECOND)
        at = len(whole_lines(output))
        time.sleep(10)
        if process.poll() is None:
            start_node(SECOND, folder)
        code = process.wait(timeout=900)
        said = log.read_text()
    return {
        "lines_when_the_node_was_taken_away": at,
        "processes_killed": num_killed,
        "lines_of_the_log_of_its_replica": both,
        "exit_code": code,
        "said_that_it_is_gone": "is gone" in said,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")], num_lines: int = 480
) -> None:
    """Run, take a node away, compare, write down."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SystemExit("network namespaces need root and `ip`")
    with TemporaryDirectory(prefix="ray2") as name:
        folder = Path(name)
        path, alone, output = (folder / part for part in ("in.jsonl", "alone.jsonl", "out.jsonl"))
        write_input(path, num_lines, 2)
        assert start(path, alone, folder / "alone.log").wait() == 0
        found = job_with_a_lost_node(path, output, folder)
        names = Counter(json.loads(line)["custom_id"] for line in whole_lines(output))
        found |= {
            "num_lines": num_lines,
            "num_lost": num_lines - len(names),
            "num_twice": sum(count > 1 for count in names.values()),
            "equal_to_one_engine": answers(output) == answers(alone),
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "two_nodes.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in found.items())
    text = (
        "# Two nodes, one taken away\n\n    python benchmarks/replicas/two_nodes.py --out benchmarks/results/replicas\n\n"
        f"SmolLM2 in float32 on a CPU, 2 replicas on 2 Ray nodes.\n\n| what | value |\n| --- | ---: |\n{rows}\n"
    )
    (out / "two_nodes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
