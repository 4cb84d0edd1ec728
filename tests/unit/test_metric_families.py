# SPDX-License-Identifier: Apache-2.0
"""The metric families: names, texts, sources, and what a scrape shows of given figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from prometheus_client.parser import text_string_to_metric_families

from vllm_batchllm.stats.counters import GAUGES, ScheduleCounters
from vllm_batchllm.stats.exporter import Collectors, Exporter
from vllm_batchllm.stats.families import FAMILIES, samples
from vllm_batchllm.stats.transport import OCCUPANCY, CounterTransport

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def scrape(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """Value by (name, engine, further label)."""
    shown = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "some/model"
            label = sample.labels.get("level") or sample.labels.get("reason") or ""
            shown[sample.name, sample.labels["engine"], label] = sample.value
    return {key: value for key, value in shown.items() if not key[0].endswith("_created")}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_and_texts_follow_the_conventions(family) -> None:
    assert re.fullmatch(r"vllm_batchllm:[a-z][a-z_]*[a-z]", family.full_name)
    assert family.full_name.endswith("_total") == (family.kind == "counter")
    assert "_total" not in family.name
    assert len(family.help) > 15 and family.help.endswith(".")
    assert (family.label is None) == (set(family.figures) == {""})
    gauges = {*GAUGES, OCCUPANCY}
    assert all((figure in gauges) == (family.kind == "gauge") for figure in family.figures.values())


def test_names_are_unique_and_every_figure_is_sent() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    shown = [figure for family in FAMILIES for figure in family.figures.values()]
    assert len(shown) == len(set(shown))
    risen = {
        name: [1] * len(value) if isinstance(value, list) else 100
        for name, value in ScheduleCounters().to_dict().items()
    }
    assert set(shown) <= set(CounterTransport().changes(risen))


def test_figures_become_samples_of_their_family() -> None:
    found = {
        (sample.family.name, sample.label): sample.value
        for sample in samples({"refused_peak": 2, "hit_tokens_by_level.7": 5, "no_such": 1})
    }
    assert found == {("admission_refusals", "peak"): 2, ("admission_hit_tokens", "8+"): 5}


def test_a_scrape_shows_counters_at_zero_and_gauges_once_known() -> None:
    registry = CollectorRegistry()
    exporter = Exporter("some/model", [0, 1], Collectors(registry=registry))
    before = scrape(registry)
    counters = {f.full_name for f in FAMILIES if f.kind == "counter"}
    assert {name for name, _, _ in before} == counters and set(before.values()) == {0}
    assert {engine for _, engine, _ in before} == {"0", "1"}
    exporter.apply(1, {"num_steps": 3, "kv_blocks": 9, "hit_tokens_by_level.0": 7})
    exporter.apply(1, {"num_steps": 2, "refused_peak": 1})
    after = scrape(registry)
    assert {key: value for key, value in after.items() if before.get(key) != value} == {
        ("vllm_batchllm:steps_total", "1", ""): 5,
        ("vllm_batchllm:kv_blocks", "1", ""): 9,
        ("vllm_batchllm:admission_hit_tokens_total", "1", "1"): 7,
        ("vllm_batchllm:admission_refusals_total", "1", "peak"): 1,
    }


def test_an_engine_that_joins_later_is_shown() -> None:
    registry = CollectorRegistry()
    Exporter("some/model", [0], Collectors(registry=registry)).apply(4, {"num_steps": 1})
    assert scrape(registry)["vllm_batchllm:steps_total", "4", ""] == 1


def test_the_next_exporter_takes_the_names_and_the_old_one_goes_on_unseen() -> None:
    registry = CollectorRegistry()
    old = Exporter("some/model", [0], Collectors(registry=registry))
    with pytest.raises(ValueError, match="Duplicated"):
        Exporter("some/model", [0], Collectors(registry=registry))
    old.apply(0, {"num_steps": 1})
    old.close()
    old.close()
    assert scrape(registry) == {}
    new = Exporter("some/model", [0], Collectors(registry=registry))
    old.apply(0, {"num_steps": 50, "kv_blocks": 2})
    new.apply(0, {"num_steps": 2})
    assert scrape(registry)["vllm_batchllm:steps_total", "0", ""] == 2


def test_a_failed_set_up_leaves_the_registry_clean() -> None:
    registry = CollectorRegistry()
    other = Exporter("some/model", [0], Collectors(registry=registry))
    blocking = other._registered.pop()  # stays registered: the last family's name is taken
    other.close()
    with pytest.raises(ValueError, match="Duplicated"):
        Exporter("some/model", [0], Collectors(registry=registry))
    registry.unregister(blocking)
    Exporter("some/model", [0], Collectors(registry=registry))


API_PROCESS = """
import sys
from vllm_batchllm.stats.exporter import Collectors, Exporter
exporter = Exporter("some/model", [0])
exporter.apply(0, {"num_steps": int(sys.argv[1]), "kv_blocks": int(sys.argv[2])})
"""


def test_several_api_processes_add_up_and_the_latest_gauge_counts(tmp_path) -> None:
    """vLLM's front ends share files, and each is told of some of the steps."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for words in (("3", "8"), ("4", "16")):
        subprocess.run([sys.executable, "-c", API_PROCESS, *words], env=environment, check=True)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(tmp_path))
    shown = scrape(registry)
    assert shown["vllm_batchllm:steps_total", "0", ""] == 7
    assert shown["vllm_batchllm:kv_blocks", "0", ""] == 16


def test_the_documentation_lists_each_metric_with_its_kind() -> None:
    rows = re.findall(
        r"^\| `(vllm_batchllm:\w+)(?:\{\w+\})?` \| (\w+) \|", DOCS.read_text(), re.MULTILINE
    )
    assert dict(rows) == {family.full_name: family.kind for family in FAMILIES}
