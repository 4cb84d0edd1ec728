# SPDX-License-Identifier: Apache-2.0
"""Energy of devices in two levels: idle, or busy at the board's power limit.

A real board draws less than its limit in steps that only read memory, and takes a while to calm down: the figures are for
comparing schedules of one workload on one device, not for a bill. What the host takes is not in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.hardware.devices import Device


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of all devices together."""

    idle_joules: float
    busy_joules: float
    joules_per_request: float

    @property
    def joules(self) -> float:
        """Idle and busy."""
        return self.idle_joules + self.busy_joules


def energy_of(
    device: Device, num_devices: int, busy_s: float, makespan_s: float, num_requests: int
) -> Energy | None:
    """Of `num_devices` that work together for `busy_s` of `makespan_s`: idle and busy power of each times that time.

    None where the power of the device is not known.
    """
    if device.idle_w is None or device.busy_w is None:
        return None
    idle = device.idle_w * max(makespan_s - busy_s, 0.0) * num_devices
    busy = device.busy_w * busy_s * num_devices
    return Energy(idle, busy, (idle + busy) / num_requests)
