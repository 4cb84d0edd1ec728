# SPDX-License-Identifier: Apache-2.0
"""A real job, killed again and again: is every line answered, once, as if nothing had happened?

    python benchmarks/jobs/kills.py --out benchmarks/results/jobs

Runs `vllm-batchllm run` on SmolLM2 and kills it (SIGKILL) at random moments: while it reads and plans, while the engine starts, and
most often while lines are answered. Then it lets the job end, and compares with a run that nobody has killed and with
`vllm run-batch`. Writes `kills.json` and `kills.md`. Takes about half a minute a kill.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
OPTIONS = [
    *("--model", str(MODEL), "--served-model-name", "smol", "--dtype", "float32"),
    *("--enforce-eager", "--max-model-len", "1024", "--gpu-memory-utilization", "0.2"),
]
WORDS = ("paper", "table", "river", "stone", "light", "music", "garden", "window", "bread", "cloud")


def write_input(path: Path, num_lines: int, seed: int) -> None:
    """Chats of documents and questions, interleaved: each document is shared by 16."""
    draw = random.Random(seed)
    documents = [" ".join(draw.choices(WORDS, k=60)) for _ in range(num_lines // 16 + 1)]
    with path.open("w") as stream:
        for number in range(num_lines):
            text = f"{documents[number % len(documents)]}. Question {number}: which word?"
            message = {"role": "user", "content": text}
            body = {"model": "smol", "temperature": 0, "max_tokens": 4, "messages": [message]}
            line = {"custom_id": f"r{number}", "method": "POST"}
            stream.write(json.dumps({**line, "url": "/v1/chat/completions", "body": body}) + "\n")


def command(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def start(path: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("vllm-batchllm", "run", path, output, *OPTIONS), stderr=subprocess.DEVNULL
    )


def whole_lines(path: Path) -> list[bytes]:
    found = path.read_bytes() if path.exists() else b""
    return found[: found.rfind(b"\n") + 1].splitlines()


def killed_once(path: Path, output: Path, draw: random.Random) -> dict[str, Any]:
    """One life of the job, cut short."""
    before, began = whole_lines(output), time.monotonic()
    process = start(path, output)
    while_answering = draw.random() < 0.75
    if while_answering:
        while len(whole_lines(output)) <= len(before) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.random() * 1.5)
    else:
        time.sleep(draw.random() * 25)
    process.kill()
    process.wait()
    now = whole_lines(output)
    assert now[: len(before)] == before, "a finished line was lost or changed"
    return {
        "after_s": time.monotonic() - began,
        "answering": while_answering,
        "lines": len(now),
        "torn": bool(output.exists() and not output.read_bytes().endswith(b"\n")),
    }


def answers(path: Path) -> dict[str, Any]:
    return {
        line["custom_id"]: {"choices": line["response"]["body"]["choices"], "error": line["error"]}
        for line in map(json.loads, whole_lines(path))
    }


def run_batch(path: Path, output: Path) -> None:
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    subprocess.run(
        command("vllm", "run-batch", "-i", path, "-o", output, *OPTIONS),
        env=environment,
        check=True,
        capture_output=True,
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    lines: Annotated[int, typer.Option(help="Lines of the job.")] = 2000,
    kills: Annotated[int, typer.Option(help="How often it is killed.")] = 50,
    seed: Annotated[int, typer.Option(help="Of input and moments.")] = 0,
) -> None:
    """Kill a job, and see what is left of it."""
    draw = random.Random(seed)
    with TemporaryDirectory() as name:
        path, output = Path(name) / "in.jsonl", Path(name) / "out.jsonl"
        write_input(path, lines, seed)
        lives = []
        for number in range(kills):
            lives.append(killed_once(path, output, draw))
            print(f"kill {number + 1}: {lives[-1]}", flush=True)
        last = start(path, output).wait()
        whole, theirs = Path(name) / "whole.jsonl", Path(name) / "theirs.jsonl"
        uninterrupted = start(path, whole).wait()
        run_batch(path, theirs)
        found = [json.loads(line)["custom_id"] for line in whole_lines(output)]
        result = {
            "lines": lines,
            "kills": kills,
            "kills_while_answering": sum(life["answering"] for life in lives),
            "torn_lines_found": sum(life["torn"] for life in lives),
            "lines_before_the_last_run": lives[-1]["lines"] if lives else 0,
            "exit_codes": [last, uninterrupted],
            "answers": len(found),
            "twice": sum(count - 1 for count in Counter(found).values()),
            "lost": lines - len(set(found)),
            "equal_to_uninterrupted": answers(output) == answers(whole),
            "equal_to_run_batch": answers(output) == answers(theirs),
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "kills.json").write_text(json.dumps(result | {"lives": lives}, indent=1) + "\n")
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in result.items())
    text = f"# A job that was killed\n\n`python benchmarks/jobs/kills.py --out benchmarks/results/jobs`, {lines} lines, {kills} kills, seed {seed}.\n\n| | |\n| --- | ---: |\n{rows}\n"
    (out / "kills.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
