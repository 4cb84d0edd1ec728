# SPDX-License-Identifier: Apache-2.0
"""The families as collectors of ``prometheus_client``, in the registry that vLLM's own use, or of what vLLM uses in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from vllm_batchllm.stats.families import FAMILIES, NAMESPACE, Family, samples

LABELS = ("model_name", "engine")
"""Labels of every family, as vLLM's own have them."""


@dataclass(frozen=True, slots=True)
class Collectors:
    """What collectors are made of.

    counter, gauge: classes of ``prometheus_client``, or what takes the same, as vLLM has it for Ray. registry: of
    ``prometheus_client``; None where the collectors are in none, and stay.
    """

    counter: Any = Counter
    gauge: Any = Gauge
    registry: CollectorRegistry | None = REGISTRY

    def made(self, family: Family) -> Any:
        """The collector of ``family``."""
        name = NAMESPACE + family.name
        labels = [*LABELS, family.label] if family.label else [*LABELS]
        where = {} if self.registry is None else {"registry": self.registry}
        if family.kind == "counter":
            return self.counter(name, family.help, labels, **where)
        # Of several API processes, the one that heard from the engine last knows best.
        return self.gauge(name, family.help, labels, multiprocess_mode="mostrecent", **where)


PROMETHEUS = Collectors()


class Exporter:
    """The metrics of one front end, for all engines it serves.

    Counters are shown from the start; a gauge from its first value on, for an unknown share or
    limit is not 0.
    """

    def __init__(
        self, model_name: str, engines: Iterable[int], collectors: Collectors = PROMETHEUS
    ) -> None:
        self._model_name = model_name
        self._registry = collectors.registry
        self._metrics: dict[str, Any] = {}
        self._registered: list[Any] = []
        self._children: dict[tuple[str, int, str], Any] = {}
        try:
            for family in FAMILIES:
                self._metrics[family.name] = collectors.made(family)
                if self._registry is not None:
                    self._registered.append(self._metrics[family.name])
        except Exception:
            self.close()
            raise
        for engine in engines:
            for family in FAMILIES:
                if family.kind == "counter":
                    for label in family.figures:
                        self._child(family, engine, label)

    def apply(self, engine: int, figures: Mapping[str, float]) -> None:
        """Add one step's increases and set its gauges."""
        for sample in samples(figures):
            child = self._child(sample.family, engine, sample.label)
            if sample.family.kind == "counter":
                child.inc(sample.value)
            else:
                child.set(sample.value)

    def close(self) -> None:
        """Take the metrics out of the registry, once; applying goes on, unseen."""
        while self._registered and self._registry is not None:
            self._registry.unregister(self._registered.pop())

    def _child(self, family: Family, engine: int, label: str) -> Any:
        key = (family.name, engine, label)
        child = self._children.get(key)
        if child is None:
            values = [self._model_name, str(engine)] + ([label] if family.label else [])
            child = self._children[key] = self._metrics[family.name].labels(*values)
        return child
