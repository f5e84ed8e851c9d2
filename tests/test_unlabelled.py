"""Items without events beside the fresh ones: in the losses without labels, and in no other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import Assembly, assemble
from mmrec.config import Config, change, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.unlabelled import find_unlabelled
from mmrec.errors import ConfigError
from mmrec.training import distributed
from mmrec.training.distributed import GatherContents, Ranks, gathering
from mmrec.training.losses import alignment_loss
from mmrec.training.objective import Losses, compute_losses
from mmrec.training.text_query import query_loss
from mmrec.training.train import Progress, train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_MET = 20, 14
TAU = 0.07  # of both contrasts, at the start


def prepare_items(folder: Path, num_items: int) -> Path:
    """A prepared folder of items with three media, of which the first fourteen are in events."""
    from tiny_run import CATALOGUE, write_media

    source = folder / "source"
    source.mkdir()
    rows = [
        {"id": f"i{number}", **write_media(source, number, seed=number)}
        for number in range(num_items)
    ]
    pl.DataFrame(rows).write_csv(source / "items.csv")
    random = np.random.default_rng(0)
    log = [
        (f"u{user}", f"i{item}", position)
        for user in range(30)
        for position, item in enumerate(random.permutation(NUM_MET)[:8])
    ]
    pl.DataFrame(log, ["user", "item", "position"], orient="row").write_csv(source / "log.csv")
    (source.parent / "catalogue.yaml").write_text(json.dumps(CATALOGUE), encoding="utf-8")
    data = source.parent / "data"
    prepare(source.parent / "catalogue.yaml", source, data, num_workers=1)
    return data


@pytest.fixture(scope="module")
def partly_met(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty items, of which the last six are in no event."""
    return prepare_items(tmp_path_factory.mktemp("partly_met"), NUM_ITEMS)


def configure(unlabelled: int = 4, **settings: Any) -> Config:
    """The tiny run without dropout, with every loss."""
    from tiny_run import tiny_config

    quiet = {
        "model.history.dropout": 0.0,
        "model.fusion.dropout": 0.0,
        "model.fusion.feature_dropout": 0.0,
        "training.fresh_items": 5,
        "training.alignment_weight": 0.5,
        "training.modality_weight": 0.5,
        "training.query_weight": 0.5,
        "training.unlabelled_items": unlabelled,
    }
    return change(tiny_config(), quiet | settings, "test")


def losses_of(assembly: Assembly) -> tuple[Losses, Tensor]:
    content = assembly.all_content()
    assert content is not None
    model: Any = assembly.model.train()
    model.fusion.out.momentum = 1.0  # every pass of the step is centred alike
    bank = content[torch.from_numpy(assembly.item_index_of)]
    losses = compute_losses(
        model,
        next(iter(assembly.stream)),
        bank,
        assembly.config.training,
        modality_dropout=0.0,
        repeats_forbidden=True,
    )
    return losses, bank


def test_they_are_in_no_event_and_cold_in_no_split(partly_met: Path, tiny_data: Path) -> None:
    data = PreparedData.open(partly_met)
    assert find_unlabelled(data, data.split()).tolist() == list(range(NUM_MET, NUM_ITEMS))
    assembly = assemble(configure(), partly_met)
    assert not {*assembly.item_index_of} & {*range(NUM_MET, NUM_ITEMS)}


def test_they_join_the_losses_without_labels(partly_met: Path) -> None:
    """Both equal the same loss over the contents of all nine items, one after the other."""
    assembly = assemble(configure(), partly_met)
    found, _ = losses_of(assembly)
    batch, model = next(iter(assembly.stream)), assembly.model.eval()
    assert batch.unlabelled is not None and batch.queries is not None
    others = batch.unlabelled.item_index
    assert len(others) == 4 and others.min() >= NUM_MET
    items = np.concatenate([assembly.item_index_of[batch.fresh.numpy()], others])
    assert assembly.source is not None and model.fusion is not None
    with torch.no_grad():
        tokens = model.tokens(assembly.source.collate(items))
        alone = {name: model.fusion({name: each}) for name, each in tokens.items()}
        present = {name: each.mask.any(1) for name, each in tokens.items()}
        scaled = {name: each / TAU**0.5 for name, each in alone.items()}
        wanted = alignment_loss(scaled, present)
        text = model.encoder("text")
        asked = model.fusion({"text": text.above(text.below(batch.queries.inputs))})
        content = model.fusion(tokens)
        asking = query_loss(asked / TAU, content, batch.queries.answers)
    assert found.alignment is not None and found.query_loss is not None
    torch.testing.assert_close(found.alignment.detach(), wanted)
    torch.testing.assert_close(found.query_loss.detach(), asking, atol=1e-3, rtol=1e-3)  # fp16
    assert batch.queries.answers.shape == (9, 9) and batch.queries.answers[5:, 5:].any()


def test_they_are_in_no_other_loss_and_not_in_the_bank(partly_met: Path) -> None:
    with_them, _ = losses_of(assemble(configure(4), partly_met))
    without, _ = losses_of(assemble(configure(0), partly_met))
    for name in ("loss", "cold_loss", "modality_loss", "content"):
        torch.testing.assert_close(getattr(with_them, name), getattr(without, name))
    assert not torch.equal(with_them.alignment, without.alignment)  # type: ignore[arg-type]


def test_their_media_teach(partly_met: Path) -> None:
    """The alignment of a step in which the fresh item is alone has a gradient from them."""
    config = configure(**{"training.fresh_items": 1, "training.query_weight": 0.0})
    assembly = assemble(config, partly_met)
    losses, _ = losses_of(assembly)
    assert losses.alignment is not None and float(losses.alignment.detach()) > 0
    losses.alignment.backward()  # type: ignore[no-untyped-call]
    projections: Any = assembly.model.fusion.projections  # type: ignore[union-attr]
    assert all(each.projection.weight.grad.any() for each in projections.values())


def test_a_draw_is_the_same_for_any_number_of_workers_and_another_each_step(
    partly_met: Path,
) -> None:
    drawn = []
    for num_workers in (0, 2):
        stream = assemble(configure(3), partly_met).stream
        batches = batch_loader(stream, epoch=0, first_batch=0, num_workers=num_workers)
        drawn.append([tuple(each.unlabelled.item_index) for each in batches if each.unlabelled])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1
    ranks = [next(iter(assemble(configure(3), partly_met, rank=r, world=2).stream)) for r in (0, 1)]
    assert [each.unlabelled.own for each in ranks if each.unlabelled] == [(0, 2), (2, 3)]


def test_more_than_there_are_gives_all(partly_met: Path) -> None:
    batch = next(iter(assemble(configure(99), partly_met).stream))
    assert batch.num_items == (5, 6)


@pytest.mark.parametrize("num_items", [(5, 3), (1, 2), (2, 0)])
def test_rows_of_all_ranks_stand_kind_by_kind(
    num_items: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = 3
    gather = GatherContents(Ranks(0, world))
    names = list(range(sum(num_items)))
    kinds = names[: num_items[0]], names[num_items[0] :]
    by_rank = []
    for rank in range(world):
        for kind in kinds:
            start, stop = distributed.share_of(len(kind), rank=rank, world=world)
            by_rank += kind[start:stop]
    monkeypatch.setattr(distributed, "gather_rows", lambda *_: torch.tensor(by_rank))
    with gathering(gather, num_items):
        assert gather.rows(torch.zeros(4)).tolist() == names
    assert gather.num_items == (0,)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    document = configure(4).model_dump(mode="json")
    document["training"] |= {"alignment_weight": 0.0, "query_weight": 0.0}
    with pytest.raises(ConfigError, match=r"unlabelled_items is 4, but .*set one of them"):
        parse_config(document)
    data = PreparedData.open(prepare_items(tmp_path, NUM_MET))
    with pytest.raises(ConfigError, match=r"has events or is .*unlabelled_items=0") as caught:
        find_unlabelled(data, data.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("blocks", [0, "all"], ids=["cached", "all"])
def test_broken_and_resumed_equals_unbroken(
    partly_met: Path, tmp_path: Path, blocks: int | str
) -> None:
    """With every loss: queries, unlabelled items and heads are drawn as they would have been."""
    settings = {"training.max_steps": 6, "training.checkpoint_every": 3, "training.log_every": 1}
    encoders = {f"encoders.{name}.trainable_blocks": blocks for name in ("text", "image", "audio")}
    config = configure(**settings, **encoders)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, partly_met, whole)

    def stop(at: Progress) -> None:
        if at.step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, partly_met, broken, progress=stop)
    train(config, partly_met, broken, resume=True)
    logs = [(run / "metrics.jsonl").read_bytes() for run in (whole, broken)]
    assert logs[0] == logs[1] and logs[0].count(b'"query_loss"') == 6
    finals = [load_file(run / "checkpoints/final/model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(finals[1][name], each) for name, each in finals[0].items())
