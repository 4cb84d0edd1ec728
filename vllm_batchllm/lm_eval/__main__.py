# SPDX-License-Identifier: Apache-2.0
"""The command of lm-evaluation-harness with our models in it; it has no entry point for models of others."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``lm_eval`` with the arguments of the command line; `vllm-batchllm` is a model there."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        sys.exit(f"lm-evaluation-harness is not there ({error}); install vllm-batchllm[lm-eval]")
    import lm_eval.models  # noqa: F401 - its own models, before ours

    from vllm_batchllm.lm_eval import completions_model, engine_model  # noqa: F401 - they register

    cli_evaluate()


if __name__ == "__main__":
    main()
