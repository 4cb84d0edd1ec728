# SPDX-License-Identifier: Apache-2.0
"""vLLM's entry point to us: the ``--scheduler`` option, and what follows from choosing us.

vLLM calls :func:`register` in every process, possibly several times, before the command line is
parsed. Unless our scheduler is chosen, nothing that vLLM does changes.
"""

from __future__ import annotations

import argparse
import copy
import functools
from typing import Any

from vllm_batchllm.attention.device import register_chosen
from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.compat.names import SCHEDULERS, is_ours, known_schedulers
from vllm_batchllm.log import get_logger
from vllm_batchllm.plugin import by_environment
from vllm_batchllm.plugin.by_environment import NotServedError
from vllm_batchllm.plugin.engine_config import batch_sizes
from vllm_batchllm.plugin.job_process import belong_to_job

logger = get_logger(__name__)


def register() -> None:
    """Add ``--scheduler`` to vLLM's command lines; check and fit the configs that choose us.

    On a vLLM that lacks the expected interface this does nothing, so that stock runs go on; the
    version gate speaks up once our scheduler is asked for.
    """
    belong_to_job()
    try:
        from vllm.engine.arg_utils import EngineArgs

        add_cli_args = EngineArgs.add_cli_args
        create_engine_config = EngineArgs.create_engine_config
    except (ImportError, AttributeError):
        return
    if hasattr(add_cli_args, "batchllm_wrapped"):
        return
    register_chosen()
    EngineArgs.add_cli_args = staticmethod(_with_scheduler_option(add_cli_args))
    EngineArgs.create_engine_config = _with_our_config(create_engine_config)


def scheduler_by_name(name: str) -> str | None:
    """The scheduler_cls for ``--scheduler NAME``; None means vLLM's own.

    Raises:
        argparse.ArgumentTypeError: the name is unknown, or vLLM's version is not supported.
    """
    if name not in SCHEDULERS:
        raise argparse.ArgumentTypeError(f"unknown scheduler {name!r}; known: {known_schedulers()}")
    if name == "batchllm":
        try:
            vllm_version.check_vllm_version()
        except vllm_version.UnsupportedVLLMError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if SCHEDULERS[name] is None:
        by_environment.decline()
    return SCHEDULERS[name]


def check_config(vllm_config: Any) -> None:
    """Refuse at start what our scheduler cannot serve.

    Raises:
        NotServedError: what vLLM's scheduler can serve.
        ValueError: a bad option. Both name the setting and the way out.
    """
    from vllm_batchllm.scheduler.settings import config_of

    vllm_version.check_vllm_version()
    config_of(vllm_config)
    model_config = vllm_config.model_config
    if model_config is not None and model_config.is_diffusion:
        raise NotServedError(
            f"the batchllm scheduler does not serve diffusion models such as {model_config.model!r}, "
            "which need a scheduler of their own; use vLLM's (--scheduler stock)"
        )
    if model_config is not None and model_config.is_encoder_decoder:
        raise NotServedError(
            f"the batchllm scheduler does not serve encoder-decoders such as {model_config.model!r}, "
            "for which vLLM has no prefix caching; use vLLM's scheduler (--scheduler stock)"
        )
    if not vllm_config.cache_config.enable_prefix_caching:
        raise NotServedError(
            "the batchllm scheduler needs prefix caching, and enable_prefix_caching is False, by "
            "choice or because the command sets it (vllm bench latency does). Give "
            "--enable-prefix-caching (LLM: enable_prefix_caching=True), or use vLLM's own scheduler "
            "(--scheduler stock); models without prefix caching, such as most pooling models, have "
            "nothing to share"
        )


def _with_scheduler_option(add_cli_args: Any) -> Any:
    @functools.wraps(add_cli_args)
    def wrapped(parser: Any, *args: Any, **kwargs: Any) -> Any:
        parser = add_cli_args(parser, *args, **kwargs)
        beside = parser._option_string_actions.get("--scheduler-cls")
        if beside is None:  # another vLLM; its own commands must go on
            return parser
        if "--scheduler" in parser._option_string_actions:
            logger.warning(
                "--scheduler belongs to somebody else here; choose ours by --scheduler-cls %s",
                SCHEDULERS["batchllm"],
            )
            return parser
        group = beside.container.add_mutually_exclusive_group()
        group._group_actions.append(beside)
        group.add_argument(
            "--scheduler",
            dest=beside.dest,
            type=scheduler_by_name,
            default=beside.default,
            metavar="NAME",
            help=f"Scheduler by name: {known_schedulers()}. `batchllm` admits requests prefix group by "
            "prefix group, for large batches that share prefixes (see vllm-batchllm).",
        )
        return parser

    wrapped.batchllm_wrapped = True  # type: ignore[attr-defined]
    return wrapped


def _with_our_config(create_engine_config: Any) -> Any:
    @functools.wraps(create_engine_config)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with by_environment.names_known():
            if is_ours(self.scheduler_cls):
                return _our_config(create_engine_config, self, args, kwargs)
            if by_environment.is_chosen():
                vllm_config = _config_by_environment(create_engine_config, self, args, kwargs)
                if vllm_config is not None:
                    return vllm_config
            return create_engine_config(self, *args, **kwargs)

    return wrapped


def _our_config(create_engine_config: Any, engine_args: Any, args: Any, kwargs: Any) -> Any:
    """The config of an engine with our scheduler. Raises as :func:`check_config` does."""
    vllm_version.check_vllm_version()
    with batch_sizes(engine_args) as sizes:
        vllm_config = create_engine_config(engine_args, *args, **kwargs)
    check_config(vllm_config)
    _choose_attention(vllm_config)
    sizes.settle(vllm_config)
    _install_metrics()
    _install_prompt_logprobs()
    if vllm_config.parallel_config.data_parallel_size > 1:
        _install_rank_choice()
    return vllm_config


def _config_by_environment(
    create_engine_config: Any, engine_args: Any, args: Any, kwargs: Any
) -> Any:
    """The same where the environment chooses us; None where another scheduler serves, with a line that says why."""
    variable = by_environment.VARIABLE
    if engine_args.scheduler_cls is not None:
        logger.info(
            "%s is set, and so is scheduler_cls = %s: that one is used",
            variable,
            engine_args.scheduler_cls,
        )
        return None
    ours = copy.copy(engine_args)
    ours.scheduler_cls = SCHEDULERS["batchllm"]
    try:
        vllm_config = _our_config(create_engine_config, ours, args, kwargs)
    except (NotServedError, vllm_version.UnsupportedVLLMError) as error:
        logger.warning("%s is set, but vLLM's own scheduler serves: %s", variable, error)
        return None
    logger.info("Scheduler: batchllm, chosen by %s", variable)
    return vllm_config


def _choose_attention(vllm_config: Any) -> None:
    """Set the attention backend where shared KV is to be read once; else leave vLLM's choice alone.

    Raises:
        ValueError: it was asked for and cannot be served.
    """
    from vllm_batchllm.attention.choice import use_shared_attention
    from vllm_batchllm.scheduler.settings import config_of

    choice = use_shared_attention(vllm_config, config_of(vllm_config).shared_attention)
    logger.info("Shared attention: %s", choice.line)


def _install_prompt_logprobs() -> None:
    """Let requests say from which position on they want log-probabilities of their prompt."""
    from vllm_batchllm.plugin.prompt_logprobs import install

    install()


def _install_rank_choice() -> None:
    """Send requests to the rank that has their prefix, where vLLM balances several; else it does so alone."""
    try:
        from vllm_batchllm.plugin.rank_choice import install

        install()
    except Exception:
        logger.warning("no rank affinity: vLLM's client is not as expected", exc_info=True)


def _install_metrics() -> None:
    """Show our figures where vLLM shows its own; an engine without them is better than none."""
    try:
        from vllm_batchllm.stats.loggers import install

        install()
    except Exception:
        logger.warning("no batchllm metrics: vLLM's loggers are not as expected", exc_info=True)
