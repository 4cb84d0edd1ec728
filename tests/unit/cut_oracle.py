# SPDX-License-Identifier: Apache-2.0
"""The cheapest cuts by a dynamic program that looks at every start for every end: slow, and hard to get wrong."""

from __future__ import annotations

import math

import numpy as np

from vllm_batchllm.replicas.cut import Costs


def cheapest_price(costs: Costs, num_parts: int, bound: float) -> float:
    """The least prefix work done twice by at most ``num_parts`` parts of at most ``bound``; infinite if there are none.

    O(num_parts * num_items ** 2).
    """
    before = np.concatenate(([0.0], np.cumsum(costs.work)))
    price = np.where(np.arange(len(costs)) > 0, costs.shared, 0.0)
    begins = before[:-1] - price
    least = np.full(len(costs) + 1, math.inf)
    least[0] = 0.0
    for _ in range(num_parts):
        further = least.copy()
        for end in range(1, len(costs) + 1):
            fits = before[end] - begins[:end] <= bound
            if fits.any():
                found = (least[:end] + price[:end])[fits].min()
                further[end] = min(further[end], found)
        least = further
    return float(least[-1])
