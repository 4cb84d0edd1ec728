# SPDX-License-Identifier: Apache-2.0
"""The methods of ``LLM`` that every engine is asked for: with a piece of the prompts each, or all with the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.renderers.inputs.preprocess import prompt_to_seq

from vllm_batchllm.replicas.engine_pool import EnginePool


class MethodsOfAll:
    """A part of `ReplicatedMethods`, which sets what is declared here."""

    _pool: EnginePool
    _num_replicas: int

    def encode(self, prompts: Any, pooling_params: Any = None, **options: Any) -> list[Any]:
        """See ``vllm.LLM.encode``."""
        return self._in_pieces("encode", prompts, {"pooling_params": pooling_params}, options)

    def embed(self, prompts: Any, *, pooling_params: Any = None, **options: Any) -> list[Any]:
        """See ``vllm.LLM.embed``."""
        return self._in_pieces("embed", prompts, {"pooling_params": pooling_params}, options)

    def classify(self, prompts: Any, *, pooling_params: Any = None, **options: Any) -> list[Any]:
        """See ``vllm.LLM.classify``."""
        return self._in_pieces("classify", prompts, {"pooling_params": pooling_params}, options)

    def beam_search(self, prompts: Any, params: Any, **options: Any) -> list[Any]:
        """See ``vllm.LLM.beam_search``."""
        return self._in_pieces("beam_search", prompts, {"params": params}, options)

    def score(self, data_1: Any, data_2: Any, /, **options: Any) -> list[Any]:
        """See ``vllm.LLM.score``."""
        second = data_2 if isinstance(data_2, list) else [data_2]
        pairs = isinstance(data_1, list) and len(data_1) == len(second) > 1
        pieces = [
            ((data_1[begin:end] if pairs else data_1, second[begin:end]), options)
            for begin, end in self._edges(len(second))
        ]
        return self._joined(self._pool.ask_each("piece", pieces, "score"))

    # By all engines.

    def collective_rpc(
        self,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Of the workers of all engines, one engine behind the other."""
        return self._joined(self._all("collective_rpc", method, timeout, args, kwargs))

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        """The same, on models."""
        return self._joined(self._all("apply_model", func))

    def start_profile(self, *args: Any, **kwargs: Any) -> None:
        """On all engines."""
        self._all("start_profile", *args, **kwargs)

    def stop_profile(self) -> None:
        """On all engines."""
        self._all("stop_profile")

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether all engines have."""
        return all(self._all("reset_prefix_cache", *args, **kwargs))

    def reset_mm_cache(self) -> None:
        """On all engines."""
        self._all("reset_mm_cache")

    def sleep(self, level: int = 1, mode: Any = "abort") -> None:
        """On all engines."""
        self._all("sleep", level, mode)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Whether all engines are awake."""
        return all(each is not False for each in self._all("wake_up", tags))

    def release_kv_cache_memory(self) -> None:
        """On all engines."""
        self._all("release_kv_cache_memory")

    def get_metrics(self) -> list[Any]:
        """Those of all engines; the label ``replica`` tells them apart."""
        found = self._all("get_metrics")
        for number, metrics in enumerate(found):
            for metric in metrics:
                metric.labels["replica"] = str(number)
        return self._joined(found)

    def _in_pieces(
        self, name: str, prompts: Any, of_each: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """A method on as many pieces of the prompts as there are engines."""
        seq = prompt_to_seq(prompts)
        options = {"use_tqdm": False, **of_each, **options}
        pieces = []
        for begin, end in self._edges(len(seq)):
            own = {
                key: value[begin:end]
                if isinstance(value, list) and len(value) == len(seq)
                else value
                for key, value in options.items()
            }
            pieces.append(((seq[begin:end],), own))
        return self._joined(self._pool.ask_each("piece", pieces, name))

    def _edges(self, number: int) -> list[tuple[int, int]]:
        size = max(1, -(-number // self._num_replicas))
        return [(begin, min(begin + size, number)) for begin in range(0, number, size)]

    def _all(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return self._pool.ask_all("engine_method", name, args, kwargs)

    @staticmethod
    def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
        return [one for part in parts for one in part]
