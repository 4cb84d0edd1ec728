# SPDX-License-Identifier: Apache-2.0
"""docs/ray.md and its manifest: what they tell people to type is understood, and their numbers agree with each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from vllm_batchllm.jobs.options import parse_job
from vllm_batchllm.replicas.start import ReplicaOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ray.md").read_text()
MANIFEST = ROOT / "docs" / "ray" / "rayjob.yaml"
COMMANDS = re.findall(r"^\S*\$ +vllm-batchllm run (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return found


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the head, and then of a worker."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def asked(words: list[str], folder: Path) -> ReplicaOptions:
    """What a command line asks for, with its files in ``folder``."""
    kept = [str(folder / Path(word).name) if word.endswith(".jsonl") else word for word in words]
    found = parse_job(kept).replicas
    assert found is not None
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_are_understood(command: str, tmp_path: Path) -> None:
    assert asked(shlex.split(command), tmp_path).num_replicas > 1


def test_the_manifest_asks_for_as_many_replicas_as_its_workers_hold(
    job: dict[str, Any], tmp_path: Path
) -> None:
    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("vllm-batchllm", "run")
    options = asked(words, tmp_path)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = pods(job)[1]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert options.ray_address == "auto"
    assert options.num_replicas * options.world_size == group["replicas"] * gpus
    assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]


def test_the_manifest_gives_everything_back_and_goes_on_with_a_retry(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0
    words = shlex.split(job["spec"]["entrypoint"])
    assert not {"--restart", "-"} & set(words)


def test_head_and_workers_have_the_same_image_and_see_the_same_files(job: dict[str, Any]) -> None:
    images, places = set(), set()
    for pod in pods(job):
        (container,) = pod["containers"]
        images.add(container["image"])
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        places |= {(claims[name], mounts[name]) for name in claims}
    assert len(images) == 1
    ((_, shared),) = places
    words = shlex.split(job["spec"]["entrypoint"])
    assert all(word.startswith(f"{shared}/") for word in words if word.endswith(".jsonl"))


def test_the_extra_is_ray_without_a_vllm_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (ray,), (executor,) = map(Requirement, extras["ray"]), map(Requirement, extras["ray-executor"])
    assert (ray.name, ray.extras) == ("ray", {"default"})
    assert (executor.name, executor.extras) == ("ray", {"cgraph"})
    assert ray.specifier == executor.specifier
