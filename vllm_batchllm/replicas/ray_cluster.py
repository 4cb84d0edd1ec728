# SPDX-License-Identifier: Apache-2.0
"""Reaching Ray: a cluster that runs, or one that is started on this machine; and what it has room for."""

from __future__ import annotations

import importlib
import os
import threading
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.log import get_logger
from vllm_batchllm.replicas.errors import NotPlacedError

logger = get_logger(__name__)

ANSWER_S = 60.0
"""So long a cluster has to answer."""
_INSTALL = "pip install 'vllm-batchllm[ray]'"
_INSTALL_EXECUTOR = "pip install 'vllm-batchllm[ray-executor]'"


@dataclass(frozen=True, slots=True)
class ReplicaShape:
    """What one replica takes. world_size: devices of its engine, tensor times pipeline parallel.

    num_cpus: of the process that holds the engine. on_cpu: its engine has no GPU.
    """

    world_size: int
    num_cpus: int = 1
    on_cpu: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of all of it on one node."""
        gpus = {} if self.on_cpu else {"GPU": float(self.world_size)}
        return {"CPU": float(self.num_cpus), **gpus}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that we are connected to.

    is_own: we have started it, on this machine alone, and it ends with us. was_there: the connection was there before us, and stays.
    """

    ray: Any
    is_own: bool = False
    was_there: bool = False

    def leave(self) -> None:
        """Undo what `connect` has done."""
        if not self.was_there:
            self.ray.shutdown()


def import_ray(what: str) -> Any:
    """The package.

    Args:
        what: that needs it, as the user has said it.

    Raises:
        NotPlacedError: it is not installed; says how to.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise NotPlacedError(
            f"{what} needs Ray, which cannot be imported ({error}): {_INSTALL}"
        ) from None


def connect(address: str | None, what: str) -> Cluster:
    """Connect to the cluster at ``address``, to that of ``RAY_ADDRESS``, or start one here.

    Raises:
        NotPlacedError: there is no Ray, the cluster does not answer within `ANSWER_S`, or runs another version of it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_ray(what)
    if ray.is_initialized():
        return Cluster(ray, was_there=True)
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise NotPlacedError(
            f"--ray-address {address}: Ray's client protocol is not used here; start the command on a node of the "
            "cluster (for instance by `ray job submit`) with --ray-address auto"
        )
    if address is None:
        ray.init(logging_level="WARNING", configure_logging=False)
        return Cluster(ray, is_own=True)
    _init_within(ray, address, ANSWER_S)
    return Cluster(ray)


def _init_within(ray: Any, address: str, seconds: float) -> None:
    """`ray.init` tries far longer than people wait, and cannot be stopped: so it is left behind where it does not end."""
    outcome: list[BaseException | None] = []

    def init() -> None:
        try:
            ray.init(address=address, logging_level="WARNING", configure_logging=False)
            outcome.append(None)
        except BaseException as error:  # noqa: BLE001 - told below, in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=init, name="ray.init", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise NotPlacedError(
            f"the Ray cluster at {address} has not answered for {seconds:.0f} s; is it there, and may this machine reach it?"
        )
    error = outcome[0]
    if error is not None:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotPlacedError(f"the Ray cluster at {address} cannot be used: {first}")


def check_room(cluster: Cluster, shape: ReplicaShape, num_replicas: int) -> None:
    """See that so many replicas can be placed.

    On this machine alone all of them must fit, as nothing will ever join. In a cluster one must; others are started as nodes come.

    Raises:
        NotPlacedError: names what is wanted, what there is, and the way out.
    """
    nodes = [node["Resources"] for node in cluster.ray.nodes() if node["Alive"]]
    fits = sum(_num_fitting(node, shape.bundle) for node in nodes)
    kind = "CPU" if shape.on_cpu else "GPU"
    there = sum(int(node.get(kind, 0)) for node in nodes)
    if not fits and _spread_fits(nodes, shape):
        check_executor(shape)
        return
    wanted = (
        f"{num_replicas} replicas of {shape.num_cpus if shape.on_cpu else shape.world_size} {kind}s"
    )
    if not fits:
        raise NotPlacedError(
            f"{wanted} each were asked for, and no node of the cluster has as many (in all it has {there}); "
            "make --tensor-parallel-size times --pipeline-parallel-size smaller"
        )
    if fits < num_replicas and cluster.is_own:
        raise NotPlacedError(
            f"{wanted} each were asked for, and this machine has {there}: room for {fits}. Ask for fewer, or name a "
            "cluster by --ray-address"
        )
    if fits < num_replicas:
        logger.warning(
            "%s each were asked for, and the cluster has room for %d now; the others start as nodes join",
            wanted,
            fits,
        )


def _num_fitting(node: dict[str, float], bundle: dict[str, float]) -> int:
    return min(int(node.get(name, 0) // number) for name, number in bundle.items() if number)


def _spread_fits(nodes: list[dict[str, float]], shape: ReplicaShape) -> bool:
    return not shape.on_cpu and sum(node.get("GPU", 0) for node in nodes) >= shape.world_size


def check_executor(shape: ReplicaShape) -> None:
    """See that a replica may be larger than a node.

    Raises:
        NotPlacedError: what vLLM needs for that is not installed.
    """
    try:
        importlib.import_module("cupy")
    except ImportError:
        raise NotPlacedError(
            f"a replica of {shape.world_size} GPUs is larger than any node, and vLLM's Ray executor, which spreads it, "
            f"needs more of Ray: {_INSTALL_EXECUTOR}"
        ) from None
