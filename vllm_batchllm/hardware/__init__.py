# SPDX-License-Identifier: Apache-2.0
"""Devices and models by name, and the memory that the one leaves beside the other."""
