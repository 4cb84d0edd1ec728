# SPDX-License-Identifier: Apache-2.0
"""When requests arrive, and what devices draw meanwhile."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_model import write_lines

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES, Device
from vllm_batchllm.simulate.arrivals import Arrivals, arrivals_of, burst_times_s, poisson_times_s
from vllm_batchllm.simulate.energy import energy_of
from vllm_batchllm.workloads.sources import InputOptions, load_batch


def test_poisson_arrivals_have_the_rate_and_exponential_gaps() -> None:
    times = poisson_times_s(20_000, 4.0, seed=1)
    gaps = np.diff([0.0, *times])
    assert times == sorted(times) and min(times) >= 0
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.05), "of an exponential, it is the mean"
    assert np.mean(gaps > 0.5) == pytest.approx(np.exp(-2), rel=0.1)


def test_a_seed_repeats_and_another_does_not() -> None:
    assert poisson_times_s(9, 1.0, 5) == poisson_times_s(9, 1.0, 5) != poisson_times_s(9, 1.0, 6)


def test_bursts_come_together_at_the_rate_of_their_requests() -> None:
    times = burst_times_s(10_003, 8.0, 10, seed=2)
    sizes = [len(list(group)) for _, group in groupby(times)]
    assert sizes == [10] * 1000 + [3]
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(8, rel=0.1)


def test_bursts_of_one_are_poisson() -> None:
    assert burst_times_s(50, 3.0, 1, 4) == poisson_times_s(50, 3.0, 4)


def traced(**more: Any) -> dict[str, Any]:
    return {"input_length": 512, "output_length": 1, "hash_ids": [1], **more}


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([3000, 3500, 5000], [0.0, 0.5, 2.0]),  # whole: milliseconds, as in Mooncake's
        ([3.0, 3.5, 5], [0.0, 0.5, 2.0]),  # one with a point: seconds, as in Qwen's
        ([5000, 3000, 3500], [2.0, 0.0, 0.5]),
        ([3000, None, 5000], None),
        (["3000", 1, 2], None),
        ([-1, 1, 2], None),
        ([1, 2, 10**400], None),
        ([True, 1, 2], None),
    ],
)
def test_a_trace_says_when_its_requests_arrived(
    tmp_path: Path, stamps: list[Any], times: list[float] | None
) -> None:
    lines = [traced() if stamp is None else traced(timestamp=stamp) for stamp in stamps]
    path = write_lines(tmp_path / "trace.jsonl", lines)
    assert load_batch(str(path), InputOptions()).arrivals_s == times


def test_a_rate_stretches_a_trace() -> None:
    recorded = [0.0, 1.0, 4.0]
    assert Arrivals("trace").times_s("t", 3, recorded) == recorded
    assert Arrivals("trace", rate=4.0).times_s("t", 3, recorded) == [0.0, 0.125, 0.5]
    with pytest.raises(UsageError, match="all requests of t arrive at once"):
        Arrivals("trace", rate=4.0).times_s("t", 2, [0.0, 0.0])
    with pytest.raises(UsageError, match="t does not say when its requests arrived"):
        Arrivals("trace").times_s("t", 3, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nope", 1.0, None), "unknown arrivals 'nope'. Did you mean .*bursts, poisson, trace"),
        (("poisson", None, None), "--arrivals poisson needs --rate"),
        (("poisson", 0.0, None), "--rate must be above 0 requests per second, not 0"),
        (("trace", -1.0, None), "--rate must be above 0 requests per second, not -1"),
        (("poisson", float("nan"), None), "--rate must be above 0"),
        (("bursts", 1.0, None), "needs --burst-size"),
        (("bursts", 1.0, 0), "--burst-size must be at least 1, not 0"),
        (("poisson", 1.0, 5), "--burst-size 5 is for --arrivals bursts, not poisson"),
        ((None, 2.0, None), "--rate 2 says how requests arrive; give --arrivals, too"),
        ((None, None, 3), "--burst-size 3 says how requests arrive; give --arrivals, too"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        arrivals_of(*options, seed=0)


def test_nothing_said_is_a_batch() -> None:
    assert arrivals_of(None, None, None, seed=3) is None
    made = Arrivals("bursts", 4.0, 10, seed=3)
    assert str(made) == "bursts of 10, 4 requests/s"
    assert Arrivals(**json.loads(json.dumps(made.describe()))) == made


def test_energy_is_idle_and_busy_power_over_their_times() -> None:
    device = Device("d", 1e9, 1.0, 1.0, 1.0, 8, 64, "made up", idle_w=50, busy_w=300)
    found = energy_of(device, num_devices=2, busy_s=6.0, makespan_s=10.0, num_requests=4)
    assert found is not None
    assert (found.idle_joules, found.busy_joules) == (50 * 4 * 2, 300 * 6 * 2)
    assert found.joules == 4000 and found.joules_per_request == 1000
    unknown = Device("d", 1e9, 1.0, 1.0, 1.0, 8, 64, "made up")
    assert energy_of(unknown, 1, 6.0, 10.0, 4) is None
    with pytest.raises(UsageError, match="busy_w of device 'd' must be above 0"):
        Device("d", 1e9, 1.0, 1.0, 1.0, 8, 64, "made up", idle_w=50, busy_w=0)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_device_says_where_its_power_is_from(device: Device) -> None:
    assert device.idle_w is not None and device.busy_w is not None
    assert 0 < device.idle_w < device.busy_w / 4
    assert "data sheet" in device.power_source and "assumed" in device.power_source
