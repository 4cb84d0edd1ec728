# SPDX-License-Identifier: Apache-2.0
"""Least squares for costs, none of which can be negative."""

from __future__ import annotations

import numpy as np

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def solve_nonnegative(matrix: Matrix, vector: Vector) -> Vector:
    """Least squares with no component below zero, from its normal equations.

    The active set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23), on normal equations as
    Bro and de Jong do it (1997).
    """
    size = len(vector)
    tolerance = 1e-12 * max(float(np.abs(vector).max(initial=0.0)), 1e-300)
    free = np.zeros(size, dtype=bool)
    solution = np.zeros(size)
    for _ in range(3 * size):
        gradient = np.where(free, -np.inf, vector - matrix @ solution)
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        solution = _feasible(matrix, vector, free, solution)
    return solution


def _feasible(matrix: Matrix, vector: Vector, free: Mask, before: Vector) -> Vector:
    """The optimum over ``free``, which is made smaller until no component is below zero."""
    while True:
        found = np.zeros(len(vector))
        found[free] = np.linalg.lstsq(matrix[np.ix_(free, free)], vector[free], rcond=None)[0]
        bad = free & (found <= 0)
        if not bad.any():
            return found
        step = float((before[bad] / np.maximum(before[bad] - found[bad], 1e-300)).min())
        before = before + step * (found - before)
        free &= before > 1e-15 * max(float(np.abs(before).max()), 1e-300)
        before = np.where(free, before, 0.0)
