# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from fake_engine import model_folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder without weights."""
    return model_folder(tmp_path_factory.mktemp("llama"))
