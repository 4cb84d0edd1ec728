# SPDX-License-Identifier: Apache-2.0
"""Shim for tools that still call setup.py; everything is declared in pyproject.toml."""

from __future__ import annotations

from setuptools import setup

setup()
