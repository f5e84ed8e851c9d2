"""Runs that began before `cache_dtype` was a setting: read, served and resumed in float16."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmrec.config import Config, change
from mmrec.data.cache import CacheSpec
from mmrec.errors import CheckpointMismatch
from mmrec.loaded import load_run, open_source
from mmrec.recommender import Recommender
from mmrec.retrieval.bundle import write_bundle
from mmrec.run_config import load_run_config, load_trained_config
from mmrec.training.train import train
from mmrec.vectors import encode_content

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

MODALITIES = ("text", "image", "audio")


def settings(dtype: str) -> Config:
    from tiny_run import tiny_config

    changes = {f"encoders.{name}.cache_dtype": dtype for name in MODALITIES}
    return change(tiny_config(), changes, "test")


def forget(run: Path) -> None:
    """Leaves out of a run's settings what an earlier version did not know."""
    path = run / "config.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for each in document["encoders"].values():
        del each["cache_dtype"]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.fixture(scope="module")
def earlier(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with caches of float16, as one that began before there was a choice left it."""
    run = tmp_path_factory.mktemp("earlier") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the tests have, which compare bits
    train(settings("float16"), tiny_data, run)
    torch.set_num_threads(threads)
    forget(run)
    return run


def dtypes_of(run: Path) -> set[str]:
    state = json.loads((run / "checkpoints" / "final" / "state.json").read_text())
    assert state["cache_dtypes"].keys() == set(MODALITIES)
    return set(state["cache_dtypes"].values())


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        ("float16", "26067f45aea2fc58308eec028f436f87e1a5c932177edc18431fa40e25c5d541"),
        ("bfloat16", "feca9575e4de967ad281daa4eb6072f8fa3884b78a5d7a0008beda9b717c0a43"),
    ],
)
def test_caches_have_the_fingerprints_that_they_had(dtype, known: str) -> None:
    """Else every cache that lies on a disk would be computed again."""
    assert CacheSpec("image", "t", "w", 3, 5, 4, dtype).fingerprint == known


def test_an_earlier_run_reads_the_caches_it_was_trained_on(
    earlier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_run(earlier)
    with caplog.at_level(logging.INFO, "mmrec.build"):
        source = open_source(loaded)
    assert source is not None and loaded.content is not None
    for name, cache in source.caches.items():
        assert cache.spec.dtype == "float16"
        assert any(
            each.startswith(f"{name}:") and " 0 computed" in each for each in caplog.messages
        )
    again = encode_content(loaded.model, source, np.arange(len(loaded.item_ids)))
    torch.testing.assert_close(again, loaded.content, atol=1e-6, rtol=0)


def test_its_settings_say_float16_and_those_of_a_new_run_do_not(
    earlier: Path, tiny_run: Path, tmp_path: Path
) -> None:
    for read in (load_run_config, load_trained_config):
        assert read(earlier / "config.yaml") == settings("float16")
        assert read(tiny_run / "config.yaml") == settings("float32")
    assert dtypes_of(earlier) == {"float16"} and dtypes_of(tiny_run) == {"float32"}
    served = Recommender.load(earlier)
    write_bundle(served.retriever, tmp_path / "bundle")
    bundle = Recommender.load(tmp_path / "bundle")
    assert load_run_config(tmp_path / "bundle" / "config.yaml") == settings("float16")
    assert set(bundle.retriever.dtypes.values()) == {"float16"}
    assert bundle.retriever.model_hash == served.retriever.model_hash


def test_it_is_resumed_in_float16_to_the_bits_of_the_unbroken(
    earlier: Path, tiny_data: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(epoch: int, _: float) -> bool:
        if epoch == 2:
            raise StoppedError
        return False

    broken = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(settings("float16"), tiny_data, broken, after_look=stop)
    forget(broken)
    train(settings("float32"), tiny_data, broken, resume=True)
    assert dtypes_of(broken) == {"float16"}
    assert load_run_config(broken / "config.yaml") == settings("float16")
    final = "checkpoints/final/model.safetensors"
    one, other = load_file(earlier / final), load_file(broken / final)
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_a_new_run_is_resumed_with_its_own_settings_alone(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(CheckpointMismatch, match="differs from the settings given"):
        train(settings("float16"), tmp_path, tmp_path / "run", resume=True)
