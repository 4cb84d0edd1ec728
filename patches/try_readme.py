# SPDX-License-Identifier: Apache-2.0
"""Run README.md's commands one by one, as somebody would who has just installed the wheel beside vLLM.

    python patches/try_readme.py --bin ENVIRONMENT/bin --model FOLDER

They are taken from README.md itself: one that is not known here is an error, so a new command is tried or named. On a
machine without a GPU vLLM gets options that make an engine start there; `MODEL` is replaced, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pip_runner import SetupError

README = Path(__file__).resolve().parent.parent / "README.md"
SMALL = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16",
         "--gpu-memory-utilization", "0.3"]  # fmt: skip
ELSEWHERE = {
    "pip install .": "the wheel is installed before this starts",
    "make demo": "a target of its own",
}
"""Commands that are run by others, and by whom."""
CHOSEN = "Scheduler: batchllm"


def commands(text: str) -> list[str]:
    """Console commands of README, without comments, in order."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split(" # ")[0].strip() for line in lines]


def snippets(text: str) -> list[str]:
    """Its Python."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


class Trial:
    """A folder with a batch of prompts, and an environment whose commands are run in it.

    Args:
        bin_folder: of the environment. model: folder of a model with a chat template. folder: an empty one.
    """

    def __init__(self, bin_folder: Path, model: Path, folder: Path) -> None:
        self.bin, self.model, self.folder = bin_folder, model, folder
        about = ["the tides", "a lighthouse", "two rivers"]
        self.prompts = [
            f"A text of {one}. " * 30 + f"Question {number}: what is it of?"
            for number in range(4) for one in about
        ]  # fmt: skip
        lines = [json.dumps({"prompt": prompt, "max_tokens": 8}) + "\n" for prompt in self.prompts]
        (folder / "prompts.jsonl").write_text("".join(lines))

    def words(self, command: str) -> list[str]:
        """The command's words, with a model that is there."""
        return [str(self.model) if word == "MODEL" else word for word in shlex.split(command)]

    def environment(self, **more: str) -> dict[str, str]:
        """Only what a user of the environment has."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VLLM_BATCHLLM")}
        own = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        return kept | own | more

    def run(self, words: list[str], **more: str) -> str:
        """What it says. Raises SetupError where it fails."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment(**more), capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise SetupError(f"`{shlex.join(words)}` ended with {done.returncode}:\n{said[-2000:]}")
        return said

    @contextmanager
    def serving(self, words: list[str]) -> Iterator[tuple[int, Path]]:
        """A server that answers: its port, and its log."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        log = self.folder / "serve.log"
        with log.open("w") as out:
            server = subprocess.Popen(
                [*words, "--port", str(port)], cwd=self.folder, env=self.environment(), stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(server, port, log)
            yield port, log
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)

    def _wait(self, server: subprocess.Popen[bytes], port: int, log: Path) -> None:
        until_s = time.monotonic() + 400
        while time.monotonic() < until_s:
            if server.poll() is not None:
                raise SetupError(f"the server ended:\n{log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(1)
            else:
                return
        raise SetupError(f"no server after 400 s:\n{log.read_text()[-2000:]}")


def expect(said: str, *wanted: str) -> None:
    """Raise SetupError where something is not said."""
    for text in wanted:
        if text not in said:
            raise SetupError(f"{text!r} was expected in:\n{said[-2000:]}")


def plan(trial: Trial, command: str) -> None:
    expect(trial.run(trial.words(command)), "verdict", "everything fits")


def doctor(trial: Trial, command: str) -> None:
    expect(trial.run(trial.words(command)), "vllm_batchllm", "stock")


def serve(trial: Trial, command: str) -> None:
    with trial.serving([*trial.words(command), *SMALL]) as (port, log):
        body = {"model": str(trial.model), "prompt": trial.prompts, "max_tokens": 8}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            choices = json.load(answer)["choices"]
        if len(choices) != len(trial.prompts):
            raise SetupError(f"{len(choices)} answers to {len(trial.prompts)} prompts")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            expect(answer.read().decode(), "vllm_batchllm:computed_prompt_tokens_total")
        expect(log.read_text(), CHOSEN)


def run_file(trial: Trial, command: str) -> None:
    trial.run([*trial.words(command), *SMALL])
    lines = (trial.folder / "answers.jsonl").read_text().splitlines()
    answered = [line for line in map(json.loads, lines) if line.get("error") is None]
    if len(answered) != len(trial.prompts):
        raise SetupError(f"{len(answered)} of {len(trial.prompts)} lines answered: {lines[:1]}")


def your_tool(trial: Trial, command: str) -> None:
    """vLLM's own benchmark stands for a tool that builds its engine itself."""
    tool = ["vllm", "bench", "throughput", "--model", str(trial.model), "--dataset-name", "random",
            "--num-prompts", "8", "--random-input-len", "64", "--random-output-len", "8", *SMALL]  # fmt: skip
    expect(command, "VLLM_BATCHLLM=1 your-tool")
    expect(trial.run(tool, VLLM_BATCHLLM="1"), f"{CHOSEN}, chosen by VLLM_BATCHLLM", "Throughput")


def offline(trial: Trial, snippet: str) -> None:
    """README's Python with the model's name and an engine's options put in, and its prompts before it."""
    name = re.search(r'LLM\("([^"]+)"\)', snippet)
    if name is None:
        raise SetupError(f"no LLM(name) in README's Python:\n{snippet}")
    small = "dtype='float32', enforce_eager=True, max_model_len=1024, gpu_memory_utilization=0.3"
    code = snippet.replace(name[0], f"LLM({str(trial.model)!r}, {small})")
    code = code.replace("max_tokens=100", "max_tokens=8")
    path = trial.folder / "offline.py"
    path.write_text(
        "if __name__ == '__main__':\n    prompts = "
        + json.dumps(trial.prompts)
        + "".join(f"\n    {line}" for line in code.splitlines())
        + "\n    assert len(outputs) == len(prompts) and all(one.outputs for one in outputs)\n"
    )
    expect(trial.run([str(trial.bin / "python"), str(path)]), CHOSEN, "prompt tokens")


TRIALS: dict[str, Callable[[Trial, str], None]] = {
    "vllm-batchllm plan": plan,
    "vllm-batchllm doctor": doctor,
    "vllm serve": serve,
    "vllm-batchllm run": run_file,
    "VLLM_BATCHLLM=1 your-tool": your_tool,
}


def trial_of(command: str) -> Callable[[Trial, str], None] | None:
    """How a command is tried; None where others run it. Raises SetupError for one that nobody knows."""
    if any(command.startswith(one) for one in ELSEWHERE):
        return None
    for start, how in TRIALS.items():
        if command.startswith(start):
            return how
    raise SetupError(f"README has a command that is not tried: {command}")


def try_all(trial: Trial, text: str) -> None:
    """Every command and all of the Python of README. Raises SetupError at the first that fails."""
    for command in commands(text):
        how, began_s = trial_of(command), time.monotonic()
        if how is not None:
            how(trial, command)
            print(f"  $ {command}: fine, {time.monotonic() - began_s:.0f} s", flush=True)
    for snippet in snippets(text):
        began_s = time.monotonic()
        offline(trial, snippet)
        print(f"  README's Python: fine, {time.monotonic() - began_s:.0f} s", flush=True)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, required=True, help="bin folder of the environment")
    parser.add_argument("--model", type=Path, required=True, help="folder of a small model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = Path(folder)
            try_all(
                Trial(options.bin.absolute(), options.model.absolute(), place), README.read_text()
            )
        except SetupError as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
