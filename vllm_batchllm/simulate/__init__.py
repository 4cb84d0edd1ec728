# SPDX-License-Identifier: Apache-2.0
"""Runs of batches on devices that are not at hand: real schedulers, a cost model for a model."""
