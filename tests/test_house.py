"""How the project is laid out: what lies where, what imports what, and what must not be in it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "encoders", "fusion", "mmrec")
HEAVY = ("torch", "transformers", "timm", "open_clip", "polars", "pyarrow", "sklearn", "faiss")


def tracked_files() -> list[Path]:
    """Files under version control; the test is skipped in an unpacked release."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def loaded_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_packages_share_one_parent_folder() -> None:
    parents = set()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        parents.add(Path(spec.origin).resolve().parent.parent)
    assert parents == {ROOT}


@pytest.mark.parametrize("statement", ["import mmrec", "import mmrec.cli"])
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert not loaded_after(statement) & set(HEAVY)


def test_a_run_starts_without_what_few_runs_need() -> None:
    """Each is a second or more at every start of a command."""
    loaded = loaded_after("import mmrec.build, mmrec.training.train, mmrec.recommender")
    assert "torch" in loaded
    assert not loaded & {"torchvision", "transformers", "timm", "sklearn", "pandas", "triton"}


def test_data_prep_imports_no_torch() -> None:
    modules = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "data_prep").rglob("*.py")
        if path.name != "__init__.py"
    )
    loaded = loaded_after("import " + ", ".join(["data_prep", *modules]))
    assert not loaded & {"torch", "torchvision", "torchaudio", "webdataset", "transformers"}
    assert not loaded & {"mmrec", "encoders", "fusion"}


def test_no_package_in_tests() -> None:
    """Such a file makes `tests` a package, which can shadow the real ones."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("stem", ["utils", "helpers", "common", "base", "misc", "legacy"])
def test_no_drawer_modules(stem: str) -> None:
    found = [path for name in PACKAGES for path in (ROOT / name).rglob(f"{stem}.py")]
    assert not found


def test_nothing_is_unpickled() -> None:
    """Checkpoints and weights come from strangers: nothing pickled, ever."""
    offences = []
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                allowed = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if (
                    called.startswith("pickle.")
                    or (called == "torch.load" and allowed.get("weights_only") != "True")
                    or (
                        called in ("np.load", "numpy.load")
                        and allowed.get("allow_pickle") == "True"
                    )
                ):
                    offences.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert not offences


def test_readme_tree_is_true() -> None:
    """The tree has a line for every file, as docs/tree.py (part of `make format`) writes it."""
    written = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n    losses.py " in readme
    assert readme == written["with_tree"](readme), "make format writes the tree anew"


def test_links_of_the_documents_lead_somewhere() -> None:
    """A relative link names a file that is there and, behind a #, a heading of it."""

    def anchors(page: Path) -> set[str]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
        return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}

    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert len(pages) > 10 and not broken


def test_constraints_pin_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = project["dependencies"] + [line for extra in extras.values() for line in extra]
    names = {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in named}  # type: ignore[union-attr]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in lines
        if line and not line.startswith("#")
    }
    unpinned = {"mmrec", "wandb", "mlflow-skinny"}  # itself; trackers that no test runs
    assert names - unpinned <= pins
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_no_real_data_in_the_project(shared_folder: Path) -> None:
    """No tracked file equals, byte for byte, a medium or table of the real data."""
    by_size = defaultdict(list)
    for path in (shared_folder / "data").rglob("*"):
        if path.is_file() and path.stat().st_size > 64:
            by_size[path.stat().st_size].append(path)
    for path in tracked_files():
        twins = by_size.get(path.stat().st_size, [])
        if twins:
            digest = hashlib.sha256(path.read_bytes()).digest()
            assert all(digest != hashlib.sha256(twin.read_bytes()).digest() for twin in twins), path
