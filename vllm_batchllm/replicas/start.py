# SPDX-License-Identifier: Apache-2.0
"""From what a user asks for to replicas that can be driven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vllm_batchllm.replicas.environment import replica_environment
from vllm_batchllm.replicas.errors import NotPlacedError
from vllm_batchllm.replicas.host import MakeWorker
from vllm_batchllm.replicas.ray_cluster import Cluster, ReplicaShape, check_room, connect
from vllm_batchllm.replicas.ray_replica import RayReplica


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """num_replicas: engines. world_size: devices of one engine.

    ray_address: of a cluster; None for that of ``RAY_ADDRESS``, or one on this machine.
    """

    num_replicas: int
    world_size: int = 1
    ray_address: str | None = None


@contextmanager
def replicas_of(
    options: ReplicaOptions, make_worker: MakeWorker, what: str
) -> Iterator[Sequence[RayReplica]]:
    """Replicas, none of them started; Ray is left at exit, and ended where we have begun it.

    Args:
        what: asks for them, in the user's words.

    Raises:
        NotPlacedError: no Ray, a cluster that does not answer, or no room in it.
    """
    check_number(options.num_replicas, what)
    cluster = connect(options.ray_address, what)
    try:
        shape = _shape(cluster, options)
        check_room(cluster, shape, options.num_replicas)
        environment = replica_environment(shape.num_cpus if shape.on_cpu else None)
        yield [
            RayReplica(cluster, number, shape, make_worker, environment)
            for number in range(options.num_replicas)
        ]
    finally:
        cluster.leave()


def _shape(cluster: Cluster, options: ReplicaOptions) -> ReplicaShape:
    """What one replica takes: GPUs where there are any, else an even part of a machine's cores."""
    nodes = [node["Resources"] for node in cluster.ray.nodes() if node["Alive"]]
    if any(node.get("GPU") for node in nodes):
        return ReplicaShape(options.world_size)
    cores = int(min((node.get("CPU", 1) for node in nodes), default=1))
    share = -(-options.num_replicas // max(len(nodes), 1))
    return ReplicaShape(options.world_size, max(1, cores // share), on_cpu=True)


def check_number(num_replicas: int, what: str) -> None:
    """Raise NotPlacedError unless it is 1 or more."""
    if num_replicas < 1:
        raise NotPlacedError(f"{what}: there must be 1 replica or more")
