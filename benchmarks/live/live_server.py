# SPDX-License-Identifier: Apache-2.0
"""Starts ``vllm serve`` as a user does, in processes of its own, and watches it from outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from live_probe import NAME, ROUTE
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
MODEL = REPOSITORY / "models" / "SmolLM2-135M-Instruct"
VLLM = Path(sys.executable).with_name("vllm")
SERVED_NAME = "live"

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_OFFLINE": "1",
    # A kept connection that the server closes while a request is on its way is no lost request.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
}

SMALL = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
    *("--distributed-executor-backend", "uni"),  # one process less to start and to end
    *("--max-model-len", "768", "--max-num-seqs", "32", "--num-gpu-blocks-override", "72"),
)
"""A server whose memory is short: a few requests of full length fill it."""


@dataclass
class LiveServer:
    """A server that answers, and its processes."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    family: list[psutil.Process] = field(default_factory=list)
    num_survivors: int = 0
    """Processes that had to be killed after the end."""

    def get(self, path: str, timeout_s: float = 60) -> httpx.Response:
        """``GET path``. Raises httpx.HTTPError where there is no answer, or a bad one."""
        return httpx.get(self.url + path, timeout=timeout_s).raise_for_status()

    def probe(self) -> dict[str, Any]:
        """What ``live_probe.examine`` says in the engine process now."""
        figures: dict[str, Any] = self.get(ROUTE).json()
        return figures

    def metrics(self) -> dict[str, float]:
        """``GET /metrics``: value by sample name, summed over labels; with the reasons of
        finished requests apart, as ``name{reason}``."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                names = [sample.name]
                if "finished_reason" in sample.labels:
                    names.append(f"{sample.name}{{{sample.labels['finished_reason']}}}")
                for name in names:
                    values[name] = values.get(name, 0.0) + sample.value
        return values

    def wait_until_idle(self, timeout_s: float = 120) -> dict[str, Any]:
        """The probe's figures once no request is left; what they are then if some are.

        The last counters have reached the front end by then.
        """
        deadline = time.monotonic() + timeout_s
        while (figures := self.probe())["requests"] and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.3)  # the front end still counts the last outputs
        return figures

    def terminate(self, timeout_s: float = 120) -> int | None:
        """SIGTERM; the exit code, or None if the server had to be killed. Nothing is left over."""
        self.remember_family()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.num_survivors = self.end_survivors()

    def remember_family(self) -> None:
        """Note the processes that belong to this server now."""
        if self.process.poll() is None:
            me = psutil.Process(self.process.pid)
            self.family = [me, *me.children(recursive=True)]

    def end_survivors(self, grace_s: float = 10) -> int:
        """Kill what is left of the noted processes after a grace; returns how many there were."""
        _, alive = psutil.wait_procs(self.family, timeout=grace_s)
        for process in alive:
            process.kill()
        return len(alive)


def launched(command: Sequence[object], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """``command`` in a process of its own, its words in ``log``, the probe's plugin in ``folder``."""
    with log.open("w") as sink:
        return subprocess.Popen(
            list(map(str, command)),
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment_with_probe(folder),
        )


@contextmanager
def serving(
    model: str | Path,
    folder: Path,
    *words: str,
    scheduler: str = "batchllm",
    options: Sequence[str] = SMALL,
    timeout_s: float = 420,
) -> Iterator[LiveServer]:
    """A server on ``model`` while the block runs; its log and the probe's plugin are in ``folder``.

    ``words`` are added to its command line, behind ``options``.

    Raises:
        RuntimeError: it does not start; with the end of its log.
    """
    port, log = free_port(), folder / "server.log"
    command = [VLLM, "serve", model, "--scheduler", scheduler, "--host", "127.0.0.1"]
    command += ["--port", port, "--served-model-name", SERVED_NAME, *options, *words]
    process = launched(command, folder, log)
    server = LiveServer(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait_until_healthy(server, timeout_s)
        yield server
    finally:
        if process.poll() is None:
            server.terminate()
        else:
            server.end_survivors()


def environment_with_probe(folder: Path) -> dict[str, str]:
    """The environment of a server that loads the probe: a distribution of two entry points."""
    metadata = folder / f"{NAME}-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{NAME} = live_probe:register\n"
        f"[vllm.endpoint_plugins]\n{NAME} = live_probe:ProbeRoute\n"
    )
    places = [str(folder), str(HERE), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return (
        dict(os.environ)
        | ENVIRONMENT
        | {
            "VLLM_PLUGINS": f"batchllm,{NAME}",
            "PYTHONPATH": os.pathsep.join(place for place in places if place),
        }
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def small_model(folder: Path) -> Path:
    """A random model of 6 layers with SmolLM2's tokenizer: some ten times as fast."""
    from vllm_batchllm.bench.random_model import RandomModelSpec, random_model

    made = random_model(folder, RandomModelSpec(vocab_size=49152, max_position_embeddings=8192))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(MODEL / name, made / name)
    return made


def _wait_until_healthy(server: LiveServer, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.get("/health", timeout_s=5)
        except httpx.HTTPError:
            time.sleep(0.5)
        else:
            server.remember_family()
            return
    raise RuntimeError(f"the server did not start: {server.log.read_text()[-3000:]}")
