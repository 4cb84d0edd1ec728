# SPDX-License-Identifier: Apache-2.0
"""How the Batch API comes into ``vllm serve``: its options, and its routes.

vLLM attaches endpoint plugins once its own routes are there, and fills their state once the engine
is; ours joins them at that place. An entry point of our own in ``vllm.endpoint_plugins`` would be
loaded only if ``VLLM_PLUGINS`` named it, which switches every other plugin off. Without
``--enable-batch-api`` nothing is attached, changed or logged.
"""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

from vllm_batchllm.batch_api.options import add_arguments, refusal, stray_options

APP = "vllm.entrypoints.launchers.app"
"""The module in which vLLM builds the app of a server; not imported where nobody serves."""

WRAPPED = "batch_api_wrapped"


def register() -> None:
    """Add the options to ``vllm serve``, and join vLLM's endpoint plugins (idempotent).

    On a vLLM that lacks the expected interface this does nothing, so that stock runs go on.
    """
    try:
        from vllm.engine.arg_utils import EngineArgs

        add_cli_args = EngineArgs.add_cli_args
    except (ImportError, AttributeError):
        return
    if not hasattr(add_cli_args, WRAPPED):
        EngineArgs.add_cli_args = staticmethod(_with_options(add_cli_args))
    # Further API server processes parse no command line: they come with the app imported.
    if hasattr(sys.modules.get(APP), "attach_endpoint_plugins"):
        _join_endpoint_plugins()


def settle(parser: Any, args: argparse.Namespace, unchosen_policy: object) -> None:
    """Refuse, by the parser's error, what cannot be served; else set what follows from the flag.

    Args:
        unchosen_policy: the object that is the policy where the user chose none.
    """
    if not getattr(args, "enable_batch_api", False):
        why = stray_options(args)
        if why is not None:
            parser.error(why)
        return
    why = refusal(args)
    if why is not None:
        parser.error(why)
    if args.scheduling_policy is unchosen_policy:
        args.scheduling_policy = "priority"
    _join_endpoint_plugins()


def _with_options(add_cli_args: Any) -> Any:
    @functools.wraps(add_cli_args)
    def wrapped(parser: Any, *args: Any, **kwargs: Any) -> Any:
        parser = add_cli_args(parser, *args, **kwargs)
        options = parser._option_string_actions
        is_server = "--headless" in options and "--scheduler" in options
        if is_server and "--enable-batch-api" not in options:
            add_arguments(parser)
            _settle_after_parsing(parser, options["--scheduling-policy"])
        return parser

    setattr(wrapped, WRAPPED, True)
    return wrapped


def _settle_after_parsing(parser: Any, policy: Any) -> None:
    """Have this one parser look at what it has parsed."""
    parse = parser.parse_known_args
    # An equal string of its own: what the user writes is equal to it at most, never the same.
    policy.default = unchosen = "".join(list(policy.default))

    def parse_known_args(*args: Any, **kwargs: Any) -> Any:
        parsed, rest = parse(*args, **kwargs)
        settle(parser, parsed, unchosen)
        return parsed, rest

    parser.parse_known_args = parse_known_args


def _join_endpoint_plugins() -> None:
    """Let the app of this process attach our routes behind vLLM's, if its command line says so."""
    from vllm.entrypoints.launchers import app as vllm_app

    attach = vllm_app.attach_endpoint_plugins
    if hasattr(attach, WRAPPED):
        return

    @functools.wraps(attach)
    def attach_endpoint_plugins(app: Any, *args: Any, **kwargs: Any) -> None:
        attach(app, *args, **kwargs)
        if getattr(app.state.args, "enable_batch_api", False):
            from vllm_batchllm.batch_api.endpoints import attach_batch_api

            attach_batch_api(app)

    setattr(attach_endpoint_plugins, WRAPPED, True)
    vllm_app.attach_endpoint_plugins = attach_endpoint_plugins
