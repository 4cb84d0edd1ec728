# SPDX-License-Identifier: Apache-2.0
"""A replica as a Ray actor in a placement group of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from vllm_batchllm.replicas.host import (
    MakeWorker,
    ReplicaHost,
    WorkerDiedError,
    installed_versions,
)
from vllm_batchllm.replicas.ray_cluster import Cluster, ReplicaShape
from vllm_batchllm.replicas.ray_gauges import RayGauges
from vllm_batchllm.replicas.replica import (
    Capacity,
    Given,
    NoPlaceError,
    ReplicaGoneError,
    Taken,
)

_PLACE_S = 60.0
"""So long a placement group may wait for a node."""
_ANSWER_S = 120.0
"""An actor that does not answer for so long is given up, whatever its engine does."""
_TAKE_S = 0.5
PIECE_BYTES = 8 * 2**20
_UNSAID_BYTES = 1024
_THREADS = 8


class RayReplica:
    """See `Replica`.

    Args:
        number: of the replica, from 0.
        make_worker: makes its worker, there.
        environment: variables for its processes.
    """

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        shape: ReplicaShape,
        make_worker: MakeWorker,
        environment: Mapping[str, str],
    ) -> None:
        self._ray, self._shape = cluster.ray, shape
        self._make_worker, self._environment = make_worker, dict(environment)
        self._name = f"batchllm-replica-{number}"
        self._num_lives = 0
        self._actor: Any = None
        self._group: Any = None

    @property
    def name(self) -> str:
        """What people call it, in logs and on Ray's dashboard."""
        return self._name

    async def start(self) -> Capacity:
        """Place the actor and start its engine.

        Raises:
            NoPlaceError: no node has room for it.
            ReplicaGoneError: it died while it started, or its node has other versions of us, vLLM or Python.
        """
        await self.end()
        await self._place()
        self._actor = self._make_actor()
        versions = await self._ask(self._actor.versions.remote())
        if versions != installed_versions():
            raise ReplicaGoneError(
                f"its node has {_said(versions)}, this one {_said(installed_versions())}; "
                "install the same everywhere"
            )
        capacity: Capacity = await self._ask(self._actor.start.remote(), timeout_s=None)
        return capacity

    async def give(self, given: Sequence[Given]) -> None:
        """Hand items over, in pieces of at most 8 MiB."""
        for piece in pieces_of(given):
            await self._ask(self._running.give.remote(piece))

    async def take(self) -> Taken:
        """What has happened; waits half a second if nothing has."""
        taken: Taken = await self._ask(self._running.take.remote(_TAKE_S))
        return taken

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of its worker. Raises what that raises."""
        from ray.exceptions import RayTaskError

        async with self._told():
            try:
                return await _wait(self._running.call.remote(method, *args, **kwargs))
            except RayTaskError as error:
                if isinstance(error.cause, Exception) and not isinstance(
                    error.cause, WorkerDiedError
                ):
                    raise error.cause from None
                raise

    async def release(self) -> None:
        """Nobody needs it any more."""
        await self.end()

    async def end(self) -> None:
        """Kill the actor, and give its place back."""
        actor, self._actor = self._actor, None
        if actor is not None:
            with suppress(Exception):
                self._ray.kill(actor)
        group, self._group = self._group, None
        if group is not None:
            with suppress(Exception):
                self._ray.util.remove_placement_group(group)

    @property
    def _running(self) -> Any:
        if self._actor is None:
            raise ReplicaGoneError("it is not running")
        return self._actor

    async def _place(self) -> None:
        shape, make = self._shape, self._ray.util.placement_group
        name = f"{self._name}-place"
        if self._is_larger_than_a_node():
            bundles = [{"GPU": 1.0, "CPU": 1.0}] * shape.world_size
            self._group = make(bundles, strategy="PACK", name=name)
        else:
            self._group = make([shape.bundle], strategy="STRICT_PACK", name=name)
        try:
            async with asyncio.timeout(_PLACE_S):
                await _wait(self._group.ready())
        except TimeoutError:
            await self.end()
            raise NoPlaceError("no node has room for it") from None

    def _is_larger_than_a_node(self) -> bool:
        if self._shape.on_cpu:
            return False
        nodes = [node["Resources"].get("GPU", 0) for node in self._ray.nodes() if node["Alive"]]
        return max(nodes, default=0) < self._shape.world_size

    def _make_actor(self) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        spread = self._is_larger_than_a_node()
        self._num_lives += 1
        life = "" if self._num_lives == 1 else f".{self._num_lives}"
        options: dict[str, Any] = {
            "name": self._name + life,
            "num_cpus": self._shape.num_cpus,
            "num_gpus": 0 if spread or self._shape.on_cpu else self._shape.world_size,
            "max_concurrency": _THREADS,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": self._environment},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, 0, placement_group_capture_child_tasks=spread
            ),
        }
        made = self._ray.remote(ReplicaHost).options(**options)
        return made.remote(self._name, self._make_worker, RayGauges(self._name))

    async def _ask(self, reference: Any, timeout_s: float | None = _ANSWER_S) -> Any:
        try:
            async with self._told(), asyncio.timeout(timeout_s):
                return await _wait(reference)
        except TimeoutError:
            raise ReplicaGoneError(f"it has not answered for {timeout_s:.0f} s") from None

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Errors of Ray as ours; what the worker itself raised, by its own first line."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            yield
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise ReplicaGoneError(_first_line(cause)) from None
        except RayActorError as error:
            raise ReplicaGoneError(_reason(error)) from None
        except RayError as error:
            raise ReplicaGoneError(_first_line(error)) from None


async def _wait(reference: Any) -> Any:
    return await asyncio.wrap_future(reference.future())


def pieces_of(given: Sequence[Given]) -> list[list[Given]]:
    """In order, each of at most `PIECE_BYTES`, or of one item, by what items say of their size (``num_bytes``)."""
    pieces: list[list[Given]] = [[]]
    size = 0
    for one in given:
        num_bytes = int(getattr(one[1], "num_bytes", _UNSAID_BYTES))
        if pieces[-1] and size + num_bytes > PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(one)
        size += num_bytes
    return pieces


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _reason(error: BaseException) -> str:
    """Why an actor is gone, of Ray's many lines the one that says it."""
    text = str(error)
    for sign, reason in (
        ("node was terminated", "its node is gone"),
        ("node died", "its node is gone"),
        ("OOM", "its process was killed; was the machine out of memory?"),
        ("worker process has died", "its process was killed"),
    ):
        if sign in text:
            return reason
    return _first_line(error)


def _said(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
