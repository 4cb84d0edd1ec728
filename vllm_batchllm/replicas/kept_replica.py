# SPDX-License-Identifier: Apache-2.0
"""A replica that outlives the batch: the engine stays loaded from one call of ``LLM`` to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_batchllm.replicas.ray_replica import RayReplica
from vllm_batchllm.replicas.replica import Capacity, Given, Taken


class KeptReplica:
    """See `Replica`; its worker is an `EngineWorker`."""

    def __init__(self, replica: RayReplica) -> None:
        self._replica = replica
        self._capacity: Capacity | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self._replica.name

    @property
    def is_loaded(self) -> bool:
        """Whether it was there when it was asked last."""
        return self._capacity is not None

    async def start(self) -> Capacity:
        """Load the model if it is not, and begin the batch."""
        capacity = await self.load()
        await self._replica.call("begin")
        return capacity

    async def load(self) -> Capacity:
        """Load the model if it is not."""
        if self._capacity is None:
            self._capacity = await self._replica.start()
        return self._capacity

    async def give(self, given: Sequence[Given]) -> None:
        """See `RayReplica.give`."""
        await self._replica.give(given)

    async def take(self) -> Taken:
        """See `RayReplica.take`."""
        return await self._replica.take()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of its worker."""
        return await self._replica.call(method, *args, **kwargs)

    async def release(self) -> None:
        """Keep it, unless it was still starting."""
        if self._capacity is None:
            await self.end()

    async def end(self) -> None:
        """End it."""
        self._capacity = None
        await self._replica.end()
