"""Signals, heads and labels where two ranks train, in whole or in parts, and several catalogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several_ranks import all_losses_of, broken_of, final_of, train_in_two_ranks
from told_catalogue import HEADS, LABELS, SIGNALS, told_config

from mmrec.build import assemble
from mmrec.cli import main
from mmrec.config import Config, change
from mmrec.data.batch import batch_loader
from mmrec.errors import ConfigError
from mmrec.mix import assemble_mix
from mmrec.recommender import Recommender
from mmrec.training.distributed import ALONE
from mmrec.training.train import train, wrap

pytest_plugins = ["told_catalogue", "several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch")

SHOP, SONGS = "shop", "songs"
SKIPS = {"kind": "binary", "positive": ["skip"], "scorer": "mlp"}
ASKED = ["--at", "1700500000"]


def shop_config(**training: Any) -> Config:
    return told_config(checkpoint_every=3, **training)


def mix_config() -> Config:
    """The catalogues have in common that their events have values, times and a context."""
    model = {"heads": {**HEADS, "skips": SKIPS}, "labels": {**LABELS, "mood": {}}}
    weights = {"buy": 2.0, "skip": 0.5}
    several = (SHOP, SONGS)
    config = told_config(model, several, checkpoint_every=3, event_weights=weights, max_epochs=1)
    return change(config, {"evaluation.baselines": ["popularity"]}, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs here."""
    return tmp_path_factory.mktemp("told_ranks")


@pytest.fixture(scope="module")
def of_shop(told_shop: Path, folder: Path) -> Path:
    """The shop by one rank, and by two of which each has a part."""
    train(shop_config(), told_shop, folder / "one")
    torch.use_deterministic_algorithms(False)
    train_in_two_ranks({folder / "parts": (shop_config(sharding="full"), told_shop, None)})
    return folder


@pytest.fixture(scope="module")
def of_both(told_shop: Path, told_songs: Path, folder: Path) -> Path:
    """Shop and songs by one rank."""
    train(mix_config(), {SHOP: told_shop, SONGS: told_songs}, folder / "mix-one")
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture(scope="module")
def killed(told_shop: Path, told_songs: Path, of_shop: Path, of_both: Path) -> Path:
    """The same by two ranks that have all, and runs by two that were killed and went on."""
    folder, both = of_shop, {SHOP: told_shop, SONGS: told_songs}
    train_in_two_ranks(
        {
            folder / "two": (shop_config(), told_shop, 5),
            folder / "parts-anew": (shop_config(sharding="full"), told_shop, 5),
            folder / "mix-two": (mix_config(), both, 5),
        }
    )
    return folder


def part_of(run: Path, name: str) -> Path:
    return run / "catalogues" / name


def assert_alike(one: Path, other: Path, parts: tuple[str, ...] = ()) -> None:
    """Every loss of every step, and what is kept."""
    expected, found = all_losses_of(one), all_losses_of(other)
    assert len(found) == len(expected) >= 8
    for mine, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5)
    for part in parts or ("",):
        mine, theirs = (final_of(part_of(each, part) if part else each) for each in (one, other))
        assert mine.keys() == theirs.keys()
        for name, each in mine.items():
            # the mean that contents are centred on is whitened, and some ten long
            atol = 1e-5 * max(1.0, float(each.abs().max()))
            torch.testing.assert_close(theirs[name], each, atol=atol, rtol=1e-4, msg=name)


def test_shares_of_two_ranks_have_the_gradient_of_the_whole(told_shop: Path) -> None:
    """Contents stand still, so that the ranks need not tell each other: what they do is a mean."""
    config = shop_config(freeze_content_epochs=1)
    sums: dict[int, dict[str, torch.Tensor]] = {}
    for world in (1, 2):
        sums[world] = {}
        for rank in range(world):
            torch.manual_seed(0)  # of the encoder, as in training
            assembly = assemble(config, told_shop, rank=rank, world=world)
            content = assembly.all_content()
            assert content is not None
            bank = content[torch.from_numpy(assembly.item_index_of)]
            trained = wrap(assembly, ALONE).train()
            batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
            total, losses = trained(batch, bank)
            total.backward()
            found = {f"{name}_loss": each for name, each in losses.heads.items()}
            found |= {
                name: each.grad
                for name, each in assembly.model.named_parameters()
                if each.grad is not None
            }
            for name, each in {**found, "loss": losses.loss}.items():
                sums[world][name] = sums[world].get(name, 0) + each.detach() / world
    assert sums[1].keys() == sums[2].keys()
    assert any(name.startswith("signals.users") for name in sums[1])
    for name, each in sums[1].items():
        assert float(each.abs().max()) > 0 or name.startswith("heads.stars.scorer.hidden"), name
        torch.testing.assert_close(sums[2][name], each, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_sharded_ranks_compute_what_one_does(of_shop: Path) -> None:
    assert_alike(of_shop / "one", of_shop / "parts")
    losses = {name for each in all_losses_of(of_shop / "parts") for name in each}
    assert {f"{name}_loss" for name in HEADS} | {"colour_labels_loss"} < losses


@pytest.mark.slow
def test_signals_heads_and_labels_have_learnt(of_shop: Path, told_shop: Path) -> None:
    """Each of their tensors has moved, so that what ranks compute alike is more than nothing."""
    start = assemble(shop_config(), told_shop).model.state_dict()
    final = final_of(of_shop / "parts")
    learnt = [
        name
        for name, each in start.items()
        if name.startswith(("signals.", "heads.", "labels.")) and each.is_floating_point()
    ]
    still = {name for name in learnt if torch.equal(start[name], final[name])}
    assert still == {f"heads.{name}.{each}" for name in HEADS for each in ("base", "spread")} | {
        "labels.of_colour.base"
    }


@pytest.mark.slow
def test_two_ranks_compute_what_one_does_of_a_shop_and_of_a_mix(killed: Path) -> None:
    assert_alike(killed / "one", killed / "two")
    assert_alike(killed / "mix-one", killed / "mix-two", (SHOP, SONGS))


def test_each_step_of_a_mix_has_the_losses_of_its_catalogue(of_both: Path) -> None:
    losses = [set(each) for each in all_losses_of(of_both / "mix-one")]
    shop = {f"{name}_loss" for name in HEADS} | {"colour_labels_loss"}
    songs = {"stars_loss", "skips_loss", "mood_labels_loss"}
    assert {frozenset(each - {"loss", "cold_loss"}) for each in losses} == {
        frozenset(shop), frozenset(songs)
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two", "parts-anew", "mix-two"])
def test_a_killed_run_goes_on_bit_for_bit(killed: Path, kind: str) -> None:
    whole, broken = killed / kind, broken_of(killed / kind)
    assert all_losses_of(broken) == all_losses_of(whole)
    for part in (SHOP, SONGS) if kind == "mix-two" else ("",):
        mine, theirs = (final_of(part_of(each, part) if part else each) for each in (whole, broken))
        assert not [name for name, each in mine.items() if not torch.equal(theirs[name], each)]


@pytest.mark.parametrize(
    ("runs", "part", "context", "heads"),
    [
        pytest.param("of_shop", "parts", "device=phone", set(HEADS), marks=pytest.mark.slow),
        pytest.param(
            "killed", f"mix-two/catalogues/{SHOP}", "device=phone", set(HEADS),
            marks=pytest.mark.slow,
        ),
        ("of_both", f"mix-one/catalogues/{SONGS}", "place=home", {"stars", "skips"}),
    ],
    ids=["sharded", "shop-of-mix-of-two-ranks", "songs-of-mix"],
)  # fmt: skip
def test_the_run_is_used_like_any_other(
    request: pytest.FixtureRequest,
    runs: str,
    part: str,
    context: str,
    heads: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = request.getfixturevalue(runs) / part
    assert main(["evaluate", str(run)]) == 0
    told = json.loads((run / "metrics-test.json").read_text())
    assert set(told["heads"]) == heads
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--bundle", "--context", context]) == 0
    capsys.readouterr()
    answers = []
    for path in (run, out / "bundle"):
        asked = [str(path), "--user", "u1", "--context", context, *ASKED, "--json"]
        assert main(["recommend", *asked]) == 0
        answers.append(json.loads(capsys.readouterr().out)["items"])
        assert set(Recommender.load(path).predict(["i1"], "u1")[0]) == {"item_id", *heads}
    assert [each["item_id"] for each in answers[0]] == [each["item_id"] for each in answers[1]]
    np.testing.assert_allclose(*([each["score"] for each in one] for one in answers), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model.heads": {"takes": {"kind": "binary", "positive": ["buy", "skip"]}}},
            "model.heads.takes names 'buy' and 'skip'; the log of catalogue 'shop' has the first",
        ),
        (
            {"model.heads": {"steals": {"kind": "binary", "positive": ["steal"]}}},
            "model.heads.steals names steal, which no catalogue has; event types are shop: buy, v",
        ),
        ({"model.signals.context": ["weather"]}, "names 'weather', which no catalogue has"),
        ({"training.event_weights": {"steal": 2.0}}, "event_weights names 'steal', which no cat"),
        (
            {"model.history.block": "pointwise"},
            "model.signals.users: catalogues read different numbers of attributes",
        ),
    ],
    ids=["types-of-two-logs", "no-type", "no-context", "no-weight", "no-distance"],
)
def test_what_no_mix_can_mean_is_refused(
    told_shop: Path, told_songs: Path, changes: dict[str, Any], line: str
) -> None:
    config = change(mix_config(), changes, "test")
    with pytest.raises(ConfigError, match=line):
        assemble_mix(config, {SHOP: told_shop, SONGS: told_songs})


def test_each_catalogue_reads_and_tells_what_it_has(told_shop: Path, told_songs: Path) -> None:
    mix = assemble_mix(mix_config(), {SHOP: told_shop, SONGS: told_songs})
    shop, songs = (mix.assemblies[name].model for name in (SHOP, SONGS))
    assert shop.reader is not None and songs.reader is not None
    assert shop.reader.spec.event_types == ("buy", "view")
    assert songs.reader.spec.event_types == ("play", "skip")
    assert [each.name for each in shop.reader.spec.context] == ["device"]
    assert [each.name for each in songs.reader.spec.context] == ["place"]
    assert shop.reader.spec.users and not songs.reader.spec.users
    assert set(shop.heads) == set(HEADS) and set(songs.heads) == {"stars", "skips"}
    assert shop.head_specs["stars"].base != songs.head_specs["stars"].base
    parts = {name: each.config for name, each in mix.assemblies.items()}
    assert parts[SHOP].training.event_weights == {"buy": 2.0}
    assert parts[SONGS].training.event_weights == {"skip": 0.5}
    assert parts[SONGS].model.signals.model_dump() | {"dropout": 0.1} == {
        **SIGNALS, "users": False, "dropout": 0.1,
    }  # fmt: skip
