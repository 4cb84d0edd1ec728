# SPDX-License-Identifier: Apache-2.0
"""Our place among vLLM's stat loggers, which feed ``/metrics``.

vLLM's entry point for such loggers does not fit: one that is merely installed switches
statistics on where the user has switched them off, and is there for every scheduler. So
vLLM's manager gets ours where it builds its own, if the engine runs our scheduler.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from prometheus_client import Counter
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import (
    AggregateStatLoggerBase,
    PrometheusStatLogger,
    StatLoggerManager,
)
from vllm.v1.metrics.stats import SchedulerStats

from vllm_batchllm.compat.names import is_ours
from vllm_batchllm.log import get_logger
from vllm_batchllm.stats.exporter import PROMETHEUS, Collectors, Exporter
from vllm_batchllm.stats.transport import detach

logger = get_logger(__name__)


class BatchLLMStatLogger(AggregateStatLoggerBase):
    """Shows our scheduler's figures to Prometheus, or to Ray, for all engines of one front end.

    As with vLLM's own metrics, a new one in the same process takes the names from the one before.
    A failure switches it off, with one warning; it never reaches the server.
    """

    _shown: Exporter | None = None  # one per process, as names in the registry are

    def __init__(
        self,
        vllm_config: VllmConfig,
        engine_indexes: list[int],
        collectors: Collectors = PROMETHEUS,
    ) -> None:
        cls = type(self)
        if cls._shown is not None:
            cls._shown.close()
            cls._shown = None
        model_name = vllm_config.model_config.served_model_name
        cls._shown = self._exporter = Exporter(str(model_name), engine_indexes, collectors)
        self._is_off = False

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take our figures off ``scheduler_stats`` and show them."""
        if scheduler_stats is None or self._is_off:
            return
        try:
            self._exporter.apply(engine_idx, detach(scheduler_stats))
        except Exception:
            self._is_off = True
            logger.warning("batchllm metrics stop: they cannot be recorded", exc_info=True)

    def log_engine_initialized(self) -> None:
        """Nothing to say; the scheduler has named itself in the log."""


def install() -> None:
    """Let engines that run our scheduler show its metrics (idempotent).

    Where statistics are off, vLLM builds no manager, and nothing of ours appears.
    """
    build = StatLoggerManager.__init__
    if not hasattr(build, "batchllm_wrapped"):
        StatLoggerManager.__init__ = _with_our_logger(build)


def collectors_of(stat_loggers: Iterable[Any]) -> Collectors:
    """What vLLM's own metrics are made of here: under Ray Serve LLM and Ray Data LLM, Ray's.

    Asked of the logger itself: to know vLLM's for Ray by name, one would have to import Ray.
    """
    for each in stat_loggers:
        if isinstance(each, PrometheusStatLogger) and each._counter_cls is not Counter:
            return Collectors(each._counter_cls, each._gauge_cls, registry=None)
    return PROMETHEUS


def _with_our_logger(build: Any) -> Any:
    @functools.wraps(build)
    def wrapped(self: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        build(self, vllm_config, *args, **kwargs)
        if not is_ours(vllm_config.scheduler_config.scheduler_cls):
            return
        try:
            ours = BatchLLMStatLogger(
                vllm_config, self.engine_indexes, collectors_of(self.stat_loggers)
            )
            # First, so that the others find the statistics as vLLM made them.
            self.stat_loggers.insert(0, ours)
        except Exception:
            logger.warning("no batchllm metrics: they cannot be set up", exc_info=True)

    wrapped.batchllm_wrapped = True  # type: ignore[attr-defined]
    return wrapped
