# SPDX-License-Identifier: Apache-2.0
"""A real job on two replicas, of which one is killed again and again, and now and then the driver: is every line answered, once?

    python benchmarks/replicas/replica_kills.py --out benchmarks/results/replicas

Runs `vllm-batchllm run --replicas 2` on SmolLM2 and sends SIGKILL while lines are answered: mostly to the process of a replica, which
the driver starts again, and sometimes to the driver, after which the same command goes on. Then it compares with a job on one
engine. Writes `replica_kills.json` and `replica_kills.md`. Takes about a minute a kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))

from kills import OPTIONS, answers, command, whole_lines, write_input

ENVIRONMENT = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "RAY_AUTH_MODE": "disabled"}
REPLICAS = ("--replicas", "2", "--max-num-seqs", "8", "--max-restarts", "100")
_WAIT_S = 400


def start(path: Path, output: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    """The job, as a process."""
    with log.open("ab") as stream:
        whole = command("vllm-batchllm", "run", path, output, *OPTIONS, *more)
        return subprocess.Popen(whole, stderr=stream, env=ENVIRONMENT)


def replica_pids() -> list[int]:
    """Processes of replicas, by the name that Ray gives them."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            name = (folder / "cmdline").read_bytes()
        except (OSError, NotADirectoryError):
            continue
        if name.startswith(b"ray::") and b"ReplicaHost" in name:
            found.append(int(folder.name))
    return sorted(found)


def wait_for(output: Path, num_lines: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether so many lines are there before the job ends."""
    deadline = time.monotonic() + _WAIT_S
    while len(whole_lines(output)) < num_lines:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"{num_lines} lines were not there after {_WAIT_S} s")
        time.sleep(0.05)
    return True


def run(
    path: Path, output: Path, log: Path, num_kills: int, draw: random.Random
) -> list[dict[str, Any]]:
    """Kill until it has been often enough; then let the job end."""
    kills: list[dict[str, Any]] = []
    process = start(path, output, log, *REPLICAS)
    while len(kills) < num_kills:
        before = whole_lines(output)
        if not wait_for(output, len(before) + draw.randint(2, 8), process):
            break
        pids = replica_pids()
        if draw.random() < 0.3 or not pids:
            process.kill()
            process.wait()
            kills.append({"killed": "driver", "lines": len(whole_lines(output))})
            process = start(path, output, log, *REPLICAS)
        else:
            os.kill(draw.choice(pids), signal.SIGKILL)
            kills.append({"killed": "replica", "lines": len(whole_lines(output))})
        now = whole_lines(output)
        assert now[: len(before)] == before, "a finished line was lost or changed"
        print(kills[-1], flush=True)
    assert process.wait(timeout=_WAIT_S) == 0, log.read_text()[-3000:]
    return kills


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    num_lines: int = 480,
    num_kills: int = 10,
    seed: int = 1,
) -> None:
    """Run, kill, compare, write down."""
    draw = random.Random(seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "input.jsonl"
        write_input(path, num_lines, seed)
        alone, output = Path(folder) / "alone.jsonl", Path(folder) / "output.jsonl"
        assert start(path, alone, Path(folder) / "alone.log").wait() == 0
        began = time.monotonic()
        kills = run(path, output, Path(folder) / "log", num_kills, draw)
        names = Counter(json.loads(line)["custom_id"] for line in whole_lines(output))
        found: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "num_lines": num_lines,
            "kills": kills,
            "num_lost": num_lines - len(names),
            "num_twice": sum(count > 1 for count in names.values()),
            "equal_to_one_engine": answers(output) == answers(alone),
            "seconds": time.monotonic() - began,
        }
        time.sleep(5)
        found["num_processes_left"] = len(replica_pids())
    write(out, found)


def write(out: Path, found: dict[str, Any]) -> None:
    """As JSON and as a page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "replica_kills.json").write_text(json.dumps(found, indent=1) + "\n")
    by_kind = Counter(kill["killed"] for kill in found["kills"])
    text = f"""# A job on two replicas, killed

    python benchmarks/replicas/replica_kills.py --out benchmarks/results/replicas

SmolLM2 in float32 on a CPU, {found["num_lines"]} lines, 2 replicas.

| what | number |
| --- | ---: |
| replicas killed (SIGKILL) | {by_kind["replica"]} |
| drivers killed (SIGKILL), the command given again | {by_kind["driver"]} |
| lines lost | {found["num_lost"]} |
| lines answered twice | {found["num_twice"]} |
| answers equal to a job on one engine | {"yes" if found["equal_to_one_engine"] else "no"} |
| processes of replicas left behind | {found["num_processes_left"]} |
| seconds in all | {found["seconds"]:.0f} |
"""
    (out / "replica_kills.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
