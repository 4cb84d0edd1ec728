# SPDX-License-Identifier: Apache-2.0
"""Figures of a replica on their way to Ray's exporter."""

from __future__ import annotations

from typing import Any

from vllm_batchllm.replicas.host import WorkerState


class RayGauges:
    """Gauges ``batchllm_*`` with the replica's name as a tag; made where they are first set, which is in its actor.

    Args:
        name: of the replica.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._gauges: dict[str, Any] = {}

    def __call__(self, state: WorkerState) -> None:
        """Set all of them."""
        for key, value in {**state.figures, "num_running": float(state.num_running)}.items():
            if key not in self._gauges:
                self._gauges[key] = self._made(key)
            self._gauges[key].set(value)

    def _made(self, key: str) -> Any:
        from ray.util.metrics import Gauge

        gauge = Gauge(f"batchllm_{key}", f"{key} of a replica", tag_keys=("replica",))
        gauge.set_default_tags({"replica": self._name})
        return gauge
