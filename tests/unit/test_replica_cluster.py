# SPDX-License-Identifier: Apache-2.0
"""What a cluster has room for, and what is said where it has not, or does not answer."""

from __future__ import annotations

import threading
import types

import pytest

from vllm_batchllm.errors import UsageError
from vllm_batchllm.replicas import ray_cluster
from vllm_batchllm.replicas.ray_cluster import Cluster, ReplicaShape, check_room, connect


def cluster(*nodes, is_own=False):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    return Cluster(types.SimpleNamespace(nodes=lambda: alive), is_own=is_own)


def test_what_fits_passes():
    check_room(cluster({"CPU": 8, "GPU": 8}), ReplicaShape(1), 8)
    check_room(cluster({"CPU": 8, "GPU": 8}), ReplicaShape(4), 2)
    check_room(cluster({"CPU": 2}, is_own=True), ReplicaShape(1, on_cpu=True), 2)


def test_more_replicas_than_devices_on_this_machine_are_refused():
    with pytest.raises(
        UsageError, match=r"8 replicas of 1 GPUs each .* this machine has 4: room for 4"
    ):
        check_room(cluster({"CPU": 8, "GPU": 4}, is_own=True), ReplicaShape(1), 8)
    with pytest.raises(UsageError, match=r"3 replicas of 1 CPUs each .* has 2: room for 2"):
        check_room(cluster({"CPU": 2}, is_own=True), ReplicaShape(1, on_cpu=True), 3)


def test_a_cluster_may_grow(heard):
    check_room(cluster({"CPU": 8, "GPU": 4}), ReplicaShape(1), 8)
    assert "room for 4 now; the others start as nodes join" in heard.text


def test_a_tensor_parallel_size_that_no_node_has_is_refused():
    with pytest.raises(
        UsageError, match=r"2 replicas of 8 GPUs each .* no node .* \(in all it has 4\)"
    ):
        check_room(cluster({"CPU": 8, "GPU": 4}), ReplicaShape(8), 2)


def test_a_replica_larger_than_a_node_needs_vllms_ray_executor(monkeypatch):
    nodes = [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}]
    monkeypatch.setitem(ray_cluster.importlib.sys.modules, "cupy", None)
    with pytest.raises(UsageError, match=r"larger than any node.*vllm-batchllm\[ray-executor\]"):
        check_room(cluster(*nodes), ReplicaShape(8), 1)
    monkeypatch.setitem(ray_cluster.importlib.sys.modules, "cupy", types.ModuleType("cupy"))
    check_room(cluster(*nodes), ReplicaShape(8), 1)


def fake_ray(monkeypatch, init):
    ray = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(ray_cluster, "import_ray", lambda what: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return ray


def test_an_address_that_does_not_answer_is_told_within_bounds(monkeypatch):
    never = threading.Event()
    fake_ray(monkeypatch, lambda **options: never.wait(20))
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.1)
    with pytest.raises(UsageError, match=r"at 10\.0\.0\.1:6379 has not answered for 0 s"):
        connect("10.0.0.1:6379", "--replicas 2")
    never.set()


def test_another_version_of_ray_is_told(monkeypatch):
    def init(**options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.48.0")

    fake_ray(monkeypatch, init)
    with pytest.raises(UsageError, match="cannot be used: Version mismatch"):
        connect("10.0.0.1:6379", "--replicas 2")


def test_rays_client_protocol_is_refused(monkeypatch):
    fake_ray(monkeypatch, lambda **options: None)
    with pytest.raises(UsageError, match="ray job submit"):
        connect("ray://head:10001", "--replicas 2")


def test_a_connection_that_was_there_stays():
    ended = []
    ray = types.SimpleNamespace(shutdown=lambda: ended.append(1))
    Cluster(ray, was_there=True).leave()
    assert not ended
    Cluster(ray).leave()
    assert ended
