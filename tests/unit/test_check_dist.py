# SPDX-License-Identifier: Apache-2.0
"""What `make dist` refuses to ship: a package with holes, metadata with gaps, a folder of a machine."""

from __future__ import annotations

import io
import tarfile
import tomllib
import zipfile
from pathlib import Path

import check_dist
import pytest

ROOT = Path(__file__).parents[2]
TEXT = {"README.md": "hello", "CHANGELOG.md": "", "LICENSE": "", "docs/a.md": "a"}
CODE = {"vllm_batchllm/__init__.py": "x = 1\n", "vllm_batchllm/page/page.css": "p {}\n"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INFO = f"vllm_batchllm-{PROJECT['version']}.dist-info"


def metadata() -> str:
    lines = [
        f"Name: {PROJECT['name']}",
        f"Version: {PROJECT['version']}",
        f"Summary: {PROJECT['description']}",
        f"License-Expression: {PROJECT['license']}",
        "License-File: LICENSE",
        f"Requires-Python: {PROJECT['requires-python']}",
        f"Keywords: {','.join(PROJECT['keywords'])}",
        "Description-Content-Type: text/markdown",
        *(f"Classifier: {each}" for each in PROJECT["classifiers"]),
        *(f"Provides-Extra: {each}" for each in PROJECT["optional-dependencies"]),
    ]
    return "\n".join(lines) + "\n\nhello"


ENTRY_POINTS = (
    "[console_scripts]\nvllm-batchllm = vllm_batchllm.cli:main\n\n"
    "[vllm.general_plugins]\nbatchllm = vllm_batchllm.plugin:register\n"
)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pyproject = {"pyproject.toml": (ROOT / "pyproject.toml").read_text()}
    tracked = {**TEXT, **CODE, **pyproject, "tests/test_a.py": ""}
    for name, content in tracked.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(check_dist, "tracked_files", lambda _: list(tracked))
    return tmp_path


def shipped(clone: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A wheel and an sdist as they should be."""
    wheel = CODE | {f"{INFO}/METADATA": metadata(), f"{INFO}/entry_points.txt": ENTRY_POINTS}
    sdist = CODE | TEXT | {"pyproject.toml": (clone / "pyproject.toml").read_text()}
    return (
        {name: content.encode() for name, content in wheel.items()},
        {name: content.encode() for name, content in sdist.items()},
    )


def test_nothing_is_wrong_with_a_whole_one(clone: Path) -> None:
    assert not list(check_dist.problems(clone, *shipped(clone)))


def test_holes_and_strangers_are_told_by_name(clone: Path) -> None:
    wheel, sdist = shipped(clone)
    del wheel["vllm_batchllm/page/page.css"], sdist["docs/a.md"]
    wheel["vllm_batchllm/__init__.py"] = b"x = 2\n"
    sdist |= {"vllm_batchllm/left_over.py": b"", "tests/test_a.py": b""}
    assert list(check_dist.problems(clone, wheel, sdist)) == [
        "wheel: vllm_batchllm/__init__.py is not the file of this clone",
        "wheel: vllm_batchllm/page/page.css is missing; see package-data in pyproject.toml",
        "sdist: vllm_batchllm/left_over.py is not tracked by git",
        "sdist: docs/a.md is missing; see MANIFEST.in",
        "sdist: tests/test_a.py is not to be shipped; see MANIFEST.in",
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Classifier: Programming Language :: Python :: 3.14\n", "", "no classifier"),
        (
            "License-Expression: Apache-2.0",
            "License-Expression: MIT",
            "License-Expression is 'MIT'",
        ),
        ("Provides-Extra: cuda\n", "", "the extra 'cuda' is missing"),
        ("License-File", "Project-URL: Home, https://x.invalid\nLicense-File", "Project-URL"),
        (f"Version: {PROJECT['version']}", "Version: 9", "Version is '9'"),
    ],
)
def test_metadata_says_what_pyproject_says(clone: Path, old: str, new: str, told: str) -> None:
    wheel, sdist = shipped(clone)
    assert old in metadata()
    wheel[f"{INFO}/METADATA"] = metadata().replace(old, new).encode()
    (problem,) = check_dist.problems(clone, wheel, sdist)
    assert problem.startswith("metadata: ") and told in problem


def test_entry_points(clone: Path) -> None:
    wheel, sdist = shipped(clone)
    wheel[f"{INFO}/entry_points.txt"] = ENTRY_POINTS.replace("plugin:", "plug:").encode()
    (problem,) = check_dist.problems(clone, wheel, sdist)
    assert "batchllm = vllm_batchllm.plugin:register in vllm.general_plugins" in problem


@pytest.mark.parametrize("path", ["/home/ann/a", "/root/.venv", "/Users/bob/x", None])
def test_folders_of_a_machine(clone: Path, path: str | None) -> None:
    wheel, sdist = shipped(clone)
    sdist["docs/b.md"] = f"see {path or clone}".encode()
    (problem,) = check_dist.problems(clone, wheel, sdist)
    assert problem.startswith("sdist: docs/b.md names a folder of a machine, /")


@pytest.mark.parametrize("text", ["~/root/x", "a/home/b/c", "$HOME/x", "https://x.invalid/home/a/"])
def test_paths_that_are_nobodys(clone: Path, text: str) -> None:
    wheel, sdist = shipped(clone)
    sdist["docs/b.md"] = text.encode()
    assert not list(check_dist.problems(clone, wheel, sdist))


def test_archives_are_read_by_name(tmp_path: Path) -> None:
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("a/b.py", "b")
    with tarfile.open(sdist, "w:gz") as archive:
        member = tarfile.TarInfo("name-1/a/b.py")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"b"))
    assert check_dist.read_wheel(wheel) == check_dist.read_sdist(sdist) == {"a/b.py": b"b"}
