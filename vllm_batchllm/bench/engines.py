# SPDX-License-Identifier: Apache-2.0
"""The live engines of an A/B: started together, checked against each other, freed together."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from vllm_batchllm.bench.config_diff import TUNED_FIELDS, config_differences
from vllm_batchllm.bench.engine import ARMS, ENGINE_OF_ARM, TUNED, EngineSpec, build_engine
from vllm_batchllm.errors import UsageError, unknown_name


@dataclass
class Engines:
    """The engines that arms run in; a context manager that frees them.

    `build` starts what the arms need; engines from elsewhere may be passed to the constructor and are then
    left alone on exit. Arms can take turns if each has an engine of its own.
    """

    llms: Mapping[str, Any]
    owned: bool = field(default=False)

    @classmethod
    def build(
        cls, spec: EngineSpec, arms: Iterable[str] = ARMS, *, shared: bool = False
    ) -> Engines:
        """Start an engine for each arm and check that nothing but the scheduler differs.

        shared: stock and sorted share one.
        """
        llms: dict[str, Any] = {}
        engines = cls(llms, owned=True)
        try:
            for arm in arms:
                if arm not in ENGINE_OF_ARM:
                    raise unknown_name("arm", arm, ARMS)
                name = ENGINE_OF_ARM[arm] if shared else arm
                if name not in llms:
                    llms[name] = build_engine(spec, name)
            engines.check()
        except BaseException:
            engines.close()
            raise
        return engines

    def for_arm(self, arm: str) -> Any:
        """The engine of an arm.

        Raises:
            UsageError: no such engine was built or given.
        """
        if arm in self.llms:
            return self.llms[arm]
        name = ENGINE_OF_ARM.get(arm)
        if name is None:
            raise unknown_name("arm", arm, ARMS)
        if name not in self.llms:
            raise UsageError(f"arm {arm!r} needs the engine {name!r}; there is {list(self.llms)}")
        return self.llms[name]

    def can_take_turns(self, arms: Iterable[str]) -> bool:
        """Whether each of ``arms`` has an engine of its own."""
        return all(arm in self.llms for arm in arms)

    def check(self) -> None:
        """Refuse engines whose live configurations differ in anything but the scheduler.

        Raises:
            UsageError: lists each difference.
        """
        llms = list(self.llms.items())
        for name, llm in llms[1:]:
            first_name, first = llms[0]
            allowed = TUNED_FIELDS if {name, first_name} & set(TUNED) else ()
            differences = config_differences(
                first.llm_engine.vllm_config, llm.llm_engine.vllm_config, allowed
            )
            if differences:
                raise UsageError(
                    f"the engines {first_name!r} and {name!r} differ in more than the scheduler, "
                    f"so their times cannot be compared: {'; '.join(differences)}"
                )

    def close(self) -> None:
        """Shut down and forget the engines, unless they came from elsewhere."""
        if not self.owned:
            return
        for llm in self.llms.values():
            llm.llm_engine.engine_core.shutdown()
        self.llms = {}
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
