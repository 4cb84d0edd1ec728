# SPDX-License-Identifier: Apache-2.0
"""Prefix-shared attention: KV that several requests of a step share is read once.

Which rows of a step share which blocks is found from their block tables (:mod:`grouping`, and on the device
:mod:`planning_kernels`, the same plan). Shared KV is then attended for a whole group at once, each request's own KV
as before, and the parts are merged by their log-sum-exp (:mod:`attention_kernels`).
"""
