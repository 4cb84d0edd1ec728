# SPDX-License-Identifier: Apache-2.0
"""What is installed, whether vLLM finds us, and what the environment chooses. vLLM is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata

from vllm_batchllm.compat import version
from vllm_batchllm.doctor.finding import Finding
from vllm_batchllm.messages import clip
from vllm_batchllm.plugin import by_environment

GROUP = "vllm.general_plugins"
NAME = "batchllm"
ENTRY_POINT = "vllm_batchllm.plugin:register"
PLUGINS = "VLLM_PLUGINS"
_SUPPORTED = f"supported: >= {version.SUPPORTED_MIN}, < {version.SUPPORTED_BELOW}"


def check_vllm() -> Iterator[Finding]:
    """Which vLLM is installed, and whether it is supported."""
    installed = version.installed_vllm_version()
    if installed is None:
        yield Finding(
            "problem",
            "vLLM",
            f"is not installed ({_SUPPORTED})",
            f"pip install 'vllm>={version.SUPPORTED_MIN},<{version.SUPPORTED_BELOW}' (GPU), or see README (CPU)",
        )
        return
    try:
        version.check_vllm_version()
    except version.UnsupportedVLLMError:
        yield Finding(
            "problem",
            "vLLM",
            f"{installed} is installed, which is not supported ({_SUPPORTED})",
            f"install a supported version, or set {version.SKIP_VERSION_CHECK}=1 to try it at your own risk",
        )
        return
    if version.is_supported(installed):
        yield Finding("ok", "vLLM", f"{installed} is installed ({_SUPPORTED})")
    else:
        yield Finding(
            "note",
            "vLLM",
            f"{installed} is installed, not supported ({_SUPPORTED}), and let through by {version.SKIP_VERSION_CHECK}",
        )


def check_plugin() -> Iterator[Finding]:
    """Whether vLLM finds the plugin by its entry point."""
    found = [entry for entry in metadata.entry_points(group=GROUP) if entry.name == NAME]
    if not any(entry.value == ENTRY_POINT for entry in found):
        other = f"; that name leads to {clip(found[0].value)}" if found else ""
        yield Finding(
            "problem",
            "plugin",
            f"vLLM does not find it: no entry point {NAME!r} in {GROUP}{other}",
            "install vllm-batchllm into the environment of vLLM with pip; a folder on PYTHONPATH is not enough",
        )
        return
    chosen = os.environ.get(PLUGINS)
    if chosen is not None and NAME not in chosen.split(","):
        yield Finding(
            "problem",
            "plugin",
            f"{PLUGINS}={clip(chosen)} leaves it out, so that --scheduler does not exist",
            f"unset {PLUGINS}, or set it to {','.join(filter(None, [chosen, NAME]))}",
        )
        return
    named = f", and {PLUGINS} names it" if chosen is not None else ""
    yield Finding("ok", "plugin", f"vLLM finds it ({GROUP}: {NAME}){named}")


def check_environment() -> Iterator[Finding]:
    """What ``VLLM_BATCHLLM`` says."""
    name = by_environment.VARIABLE
    try:
        is_chosen = by_environment.is_chosen()
    except ValueError as error:
        yield Finding("problem", name, str(error), f"export {name}=1, or unset it")
        return
    if is_chosen:
        text = f"{name} is set: every engine that has no scheduler of its own gets ours"
        yield Finding("ok", name, text, f"unset {name} to have vLLM's own again")
    else:
        text = "is not set: engines have vLLM's own scheduler unless ours is chosen"
        way = f"vllm_batchllm.LLM, --scheduler batchllm, or {name}=1 for tools that build their own engine"
        yield Finding("ok", name, text, way)
