# SPDX-License-Identifier: Apache-2.0
"""What a device draws when it waits and when it works, as the user says or NVML does."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.utils.import_utils import import_pynvml

from vllm_batchllm.config import BatchLLMConfig


@dataclass(frozen=True, slots=True)
class DevicePower:
    """Watts: idle, and in a step."""

    idle_w: float
    busy_w: float

    @property
    def more_w(self) -> float:
        """What a step draws beyond waiting."""
        return self.busy_w - self.idle_w


def power_of(config: BatchLLMConfig) -> DevicePower | None:
    """The power that decisions count with; None where it has no weight.

    Asked of the first visible NVIDIA device, where the user does not say: what it draws now, before any request, is
    idle, and its power limit is busy.

    Raises:
        ValueError: the device does not say.
    """
    if not config.power_weight:
        return None
    if config.idle_power_w is not None and config.busy_power_w is not None:
        return DevicePower(config.idle_power_w, config.busy_power_w)
    try:
        return _asked()
    except Exception as error:  # noqa: BLE001 - NVML has errors of its own, and may be missing
        raise ValueError(
            f"batchllm option 'power_weight' = {config.power_weight:g} needs the power of the device, which does not say "
            f"({error}); give 'idle_power_w' and 'busy_power_w', watts"
        ) from None


def _asked() -> DevicePower:
    """Of the first NVIDIA device."""
    nvml = import_pynvml()
    nvml.nvmlInit()
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        idle_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        busy_w = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3
    finally:
        nvml.nvmlShutdown()
    if not busy_w > idle_w:
        raise RuntimeError(f"it draws {idle_w:g} W of at most {busy_w:g} W while it waits")
    return DevicePower(idle_w, busy_w)
