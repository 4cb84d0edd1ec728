# SPDX-License-Identifier: Apache-2.0
"""Model folders are checked in front of vLLM, and no stricter than it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_batchllm.offline.arguments import check_model_folder


def test_a_folder_that_can_be_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no config\\.json"):
        check_model_folder(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        check_model_folder(str(tmp_path / "nowhere"))


def test_a_config_may_lie_elsewhere_and_home_is_vllms_to_find(tmp_path: Path) -> None:
    check_model_folder(str(tmp_path), hf_config_path="/somewhere/else")
    check_model_folder("~/models/some-model")
    check_model_folder("organisation/model")
