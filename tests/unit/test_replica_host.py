# SPDX-License-Identifier: Apache-2.0
"""Where a replica is: answers are fetched once, a death is told, and nothing of it needs Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from vllm_batchllm.jobs.line_worker import LineItself
from vllm_batchllm.replicas import ray_replica
from vllm_batchllm.replicas.engine_worker import Asked
from vllm_batchllm.replicas.environment import replica_environment
from vllm_batchllm.replicas.host import Outbox, ReplicaHost, WorkerDiedError, WorkerState
from vllm_batchllm.replicas.replica import Capacity


def test_answers_are_fetched_once_and_gathered():
    box = Outbox()
    threading.Timer(0.02, lambda: [box.put(number, str(number)) for number in range(5)]).start()
    assert box.fetch(5.0) == [(number, str(number)) for number in range(5)]
    began = time.monotonic()
    assert box.fetch(0.05) == []
    assert time.monotonic() - began < 1.0


def test_a_death_is_told_after_the_answers_that_came_before():
    box = Outbox()
    box.put(1, "a")
    box.fail("out of memory")
    box.fail("and then something else")
    assert box.fetch(0.0) == [(1, "a")]
    with pytest.raises(WorkerDiedError, match="out of memory"):
        box.fetch(0.0)


class Echo:
    """Answers at once."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def start(self) -> Capacity:
        return Capacity(3)

    def give(self, given) -> None:
        for item, what in given:
            self._outbox.put(item, what)

    def state(self) -> WorkerState:
        return WorkerState(2, 7, {"steps": 7.0})

    def call(self, method, *args, **kwargs):
        return method, args, kwargs


@pytest.fixture
def own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_a_host_passes_everything_on(own_environment):
    told = []
    host = ReplicaHost("batchllm-replica-0", Echo, told.append)
    assert repr(host) == "batchllm-replica-0"
    assert host.start() == Capacity(3)
    host.give([(4, "x")])
    taken = host.take(1.0)
    assert (taken.answers, taken.num_running, taken.life) == ([(4, "x")], 2, 7)
    assert host.call("m", 1, two=2) == ("m", (1,), {"two": 2})
    assert set(host.versions()) == {"Python", "vllm", "vllm-batchllm"}
    assert told == [WorkerState(2, 7, {"steps": 7.0})]
    assert os.environ["VLLM_BATCHLLM_JOB_PID"] == str(os.getpid())


def test_a_replica_gets_the_drivers_variables_but_not_those_of_its_place(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("VLLM_HOST_IP", "1.2.3.4")
    monkeypatch.setenv("VLLM_DP_RANK", "3")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    found = replica_environment(2)
    assert found["VLLM_LOGGING_LEVEL"] == "ERROR"
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert not {"VLLM_HOST_IP", "VLLM_DP_RANK", "SECRET"} & set(found)
    assert "OMP_NUM_THREADS" not in replica_environment(None)


def test_what_is_handed_over_goes_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(ray_replica, "PIECE_BYTES", 10)
    lines = [LineItself(number, b"x" * size) for number, size in enumerate([4, 4, 4, 30, 1])]
    pieces = ray_replica.pieces_of(list(enumerate(lines)))
    assert [[number for number, _ in piece] for piece in pieces] == [[0, 1], [2], [3], [4]]
    asked = Asked("prompt", {"prompt_token_ids": [1, 2]}, None)
    assert asked.num_bytes == 8
    assert Asked("prompt", "four", None).num_bytes == 4
    assert Asked("chat", [{"role": "user", "content": "x"}], None).num_bytes > 20


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
import pytest
from vllm_batchllm import LLM
from vllm_batchllm.cli import app
from vllm_batchllm.errors import UsageError
from vllm_batchllm.replicas.start import ReplicaOptions, replicas_of
with pytest.raises(UsageError) as refused:
    with replicas_of(ReplicaOptions(2), None, "--replicas 2"):
        pass
print(refused.value)
"""


def test_without_ray_all_but_replicas_works_and_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, check=True, timeout=120
    )
    assert "--replicas 2 needs Ray" in done.stdout
    assert "pip install 'vllm-batchllm[ray]'" in done.stdout
