# SPDX-License-Identifier: Apache-2.0
"""The families as collectors of ``prometheus_client``, in the registry that vLLM's own use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from vllm_batchllm.stats.families import FAMILIES, NAMESPACE, Family, samples

LABELS = ("model_name", "engine")
"""Labels of every family, as vLLM's own have them."""


class Exporter:
    """The metrics of one front end, for all engines it serves.

    Counters are shown from the start; a gauge from its first value on, for an unknown share or
    limit is not 0.
    """

    def __init__(
        self, model_name: str, engines: Iterable[int], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._model_name = model_name
        self._registry = registry
        self._metrics: dict[str, Counter | Gauge] = {}
        self._registered: list[Counter | Gauge] = []
        self._children: dict[tuple[str, int, str], Counter | Gauge] = {}
        try:
            for family in FAMILIES:
                self._metrics[family.name] = _collector(family, registry)
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
            if isinstance(child, Counter):
                child.inc(sample.value)
            else:
                child.set(sample.value)

    def close(self) -> None:
        """Take the metrics out of the registry, once; applying goes on, unseen."""
        while self._registered:
            self._registry.unregister(self._registered.pop())

    def _child(self, family: Family, engine: int, label: str) -> Counter | Gauge:
        key = (family.name, engine, label)
        child = self._children.get(key)
        if child is None:
            values = [self._model_name, str(engine)] + ([label] if family.label else [])
            child = self._children[key] = self._metrics[family.name].labels(*values)
        return child


def _collector(family: Family, registry: CollectorRegistry) -> Counter | Gauge:
    name = NAMESPACE + family.name
    labels = (*LABELS, family.label) if family.label else LABELS
    if family.kind == "counter":
        return Counter(name, family.help, labels, registry=registry)
    # Of several API processes, the one that heard from the engine last knows best.
    return Gauge(name, family.help, labels, registry=registry, multiprocess_mode="mostrecent")
