"""The state cache: what is computed, what is kept, what a kill leaves, what memory it takes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import BrokenMedium
from encoders.encoder import Inputs
from encoders.tokens import Tokens, masked
from mmrec.data.cache import CacheSpec, StateCache, round_states
from mmrec.data.fill import fill, fill_cache
from mmrec.data.items import ItemInputs
from mmrec.errors import UserError

T, W, P = 3, 5, 4


@dataclass
class FakeMedia:
    """Media in memory: a list of numbers an item, None = missing, [] = broken."""

    values: list[list[float] | None]
    state: str | None = None
    loads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def item_id(self, item_index: int) -> str:
        return f"item-{item_index}"

    def digest(self, item_index: int, modality: str) -> str | None:
        value = self.values[item_index]
        return None if value is None else hashlib.sha256(str(value).encode()).hexdigest()

    def load(self, item_index: int, modality: str) -> list[float] | None:
        self.loads.append(item_index)
        value = self.values[item_index]
        if value is not None and not value:
            raise BrokenMedium("broken image: nothing in it")
        return value


class FakeTransform:
    """Up to T numbers, padded; a list of one 0 has nothing to encode."""

    def __init__(self, version: str = "1") -> None:
        self.version = version

    def __call__(self, medium: list[float]) -> Tensor | None:
        return None if medium == [0] else torch.tensor(medium)

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        numbers = torch.zeros(len(samples), T)
        mask = torch.zeros(len(samples), T, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                numbers[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"numbers": numbers, "mask": mask, "present": mask.any(dim=1)}

    def fingerprint(self) -> str:
        return f"transform {self.version}"


class FakeEncoder(nn.Module):
    """Numbers times a fixed row of weights; counts its items and what mode it ran in."""

    modality = "image"
    width, num_tokens, state_width = P, T, W

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(scale * torch.linspace(0.1, 1.3, W))
        self.num_items = 0

    def below(self, inputs: Inputs) -> Tokens:
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        self.num_items += len(inputs["numbers"])
        values = self.drop(inputs["numbers"][:, :, None] * self.weight)
        return masked(values, inputs["mask"])

    def above(self, states: Tokens) -> Tokens:
        return Tokens(states.values[:, :, :P] + 1, states.mask)

    def pooled(self, tokens: Tokens) -> Tensor:
        return tokens.pooled()

    def fingerprint(self) -> str:
        return f"weights {self.scale}"


def make_inputs(media: FakeMedia, version: str = "1") -> ItemInputs:
    return ItemInputs(media, {"image": FakeTransform(version)})


def some_media(num_items: int = 50) -> FakeMedia:
    return FakeMedia([[float(i + k) for k in range(1, 2 + i % T)] for i in range(num_items)])


def run(tmp_path: Path, media: FakeMedia, **changes: Any) -> tuple[StateCache, Any, int]:
    encoder = FakeEncoder(changes.get("scale", 1.0))
    inputs = make_inputs(media, changes.get("version", "1"))
    dtype = changes.get("dtype", "float32")
    cache, report = fill_cache(tmp_path, inputs, encoder, "image", dtype=dtype, batch_size=8)
    return cache, report, encoder.num_items


def every(cache: StateCache) -> np.ndarray[Any, Any]:
    return np.arange(cache.num_items)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_states_are_those_of_a_bare_loop_rounded(dtype: Any, tmp_path: Path) -> None:
    media = some_media()
    cache, report, _ = run(tmp_path, media, dtype=dtype)
    encoder, transform = FakeEncoder().eval(), FakeTransform()
    with torch.no_grad():
        live = encoder.below(transform.collate([transform(v) for v in media.values if v]))
    states = cache.read(every(cache))
    assert states.values.dtype == torch.float32 and states.values.shape == (50, T, W)
    rounded = live.values.half().float() if dtype == "float16" else live.values
    assert torch.equal(states.values, rounded)
    assert torch.equal(states.values, round_states(live, dtype).values)
    assert torch.equal(states.mask, live.mask)
    expected = encoder.pooled(encoder.above(states))
    assert torch.equal(cache.pooled(every(cache)), expected)
    assert (report.computed, report.kept, report.missing, report.broken) == (50, 0, 0, ())
    values = cache.folder / "values.bin"
    assert values.stat().st_size == 50 * T * W * (2 if dtype == "float16" else 4)
    assert json.loads((cache.folder / "manifest.json").read_text())["dtype"] == dtype
    size = sum(each.stat().st_size for each in cache.folder.glob("*.bin"))
    assert size == 50 * cache.spec.row_bytes


def test_read_takes_any_order_and_repeats(tmp_path: Path) -> None:
    cache, _, _ = run(tmp_path, some_media())
    rows = np.array([7, 3, 7, 49])
    whole, some = cache.read(every(cache)), cache.read(rows)
    assert torch.equal(some.values, whole.values[rows]) and torch.equal(some.mask, whole.mask[rows])


def test_encoder_is_left_in_its_mode(tmp_path: Path) -> None:
    encoder = FakeEncoder().train()
    fill_cache(tmp_path, make_inputs(some_media()), encoder, "image")
    assert encoder.training and torch.is_grad_enabled()


def test_nothing_changed_costs_nothing(tmp_path: Path) -> None:
    run(tmp_path, some_media())
    _, report, encoded = run(tmp_path, some_media())
    assert (encoded, report.computed, report.kept) == (0, 0, 50)


def test_ten_new_items_cost_ten(tmp_path: Path) -> None:
    before, _, _ = run(tmp_path, some_media(50))
    old = before.read(every(before))
    cache, report, encoded = run(tmp_path, some_media(60))
    assert (encoded, report.computed, report.kept) == (10, 10, 50)
    assert torch.equal(cache.read(np.arange(50)).values, old.values)
    assert cache.present.all()


def test_replaced_medium_is_computed_again(tmp_path: Path) -> None:
    media = some_media()
    before, _, _ = run(tmp_path, media)
    old = before.read(np.array([20]))
    media.values[20] = [100.0]
    cache, report, encoded = run(tmp_path, media)
    assert (encoded, report.kept) == (1, 49)
    new = cache.read(np.array([20]))
    assert not torch.equal(new.values, old.values)
    assert new.mask.tolist() == [[True, False, False]]


def test_removed_medium_leaves_no_state(tmp_path: Path) -> None:
    media = some_media()
    run(tmp_path, media)
    media.values[20] = None
    cache, report, encoded = run(tmp_path, media)
    assert (encoded, report.kept, report.missing) == (0, 49, 1)
    assert not cache.read(np.array([20])).mask.any()
    assert not cache.pooled(np.array([20])).any()


@pytest.mark.parametrize("change", [{"scale": 2.0}, {"version": "2"}], ids=["weights", "transform"])
def test_other_weights_or_transform_compute_everything(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    run(tmp_path, some_media())
    _, report, encoded = run(tmp_path, some_media(), **change)
    assert (encoded, report.computed) == (50, 50)
    _, report, _ = run(tmp_path, some_media())  # the first is still there
    assert report.kept == 50


def test_unchanged_folder_is_not_looked_through(tmp_path: Path) -> None:
    media = some_media()
    media.state = "hash of the folder"
    run(tmp_path, media)
    again = some_media()
    again.state = media.state
    again.values[3] = [9.0]  # not looked at: the folder's hash vouches for it
    _, report, encoded = run(tmp_path, again)
    assert (encoded, report.kept) == (0, 50)
    again.state = "another"
    _, report, encoded = run(tmp_path, again)
    assert (encoded, report.kept) == (1, 49)


def test_missing_and_broken_are_named_and_never_zeros_as_real(tmp_path: Path) -> None:
    media = some_media(20)
    media.values[2] = None
    media.values[5] = []
    media.values[6] = [0]  # the transform finds nothing in it
    media.state = "state"
    cache, report, _ = run(tmp_path, media)
    assert (report.computed, report.missing, len(report.broken)) == (17, 2, 1)
    assert "item-5: broken image" in report.line() and "1 broken" in report.line()
    states = cache.read(every(cache))
    assert (~states.mask.any(dim=1)).nonzero().flatten().tolist() == [2, 5, 6]
    assert np.flatnonzero(~cache.present).tolist() == [2, 5, 6]
    _, again, _ = run(tmp_path, media)  # named each time
    assert [b.item_id for b in again.broken] == ["item-5"] and again.computed == 0
    media.values[5] = [4.0]
    _, mended, encoded = run(tmp_path, media)
    assert (encoded, mended.broken) == (1, ())


def test_large_states_are_kept_in_bf16(tmp_path: Path) -> None:
    media = some_media()
    media.values[30] = [5e4]
    cache, report, _ = run(tmp_path, media, dtype="float16")
    assert cache.spec.dtype == "bfloat16" and report.computed == 50
    states = cache.read(every(cache)).values
    assert torch.equal(states, states.bfloat16().float()) and float(states.max()) > 3e4
    again, report, encoded = run(tmp_path, media, dtype="float16")
    assert (again.spec.dtype, encoded) == ("bfloat16", 0)
    exact, _, _ = run(tmp_path, media)
    assert exact.spec.dtype == "float32"
    assert float(exact.read(np.array([30])).values.max()) == pytest.approx(6.5e4, rel=1e-6)


def test_rounding_stays_finite() -> None:
    states = Tokens(torch.tensor([[[1e6, -1e6, 1.0002]]]), torch.ones(1, 1, dtype=torch.bool))
    assert round_states(states, "float16").values.tolist() == [[[65504.0, -65504.0, 1.0]]]


def test_states_that_are_no_numbers_stop_with_one_line(tmp_path: Path) -> None:
    media = some_media()
    media.values[9] = [float("nan")]
    with pytest.raises(UserError, match="row 9 are not finite"):
        run(tmp_path, media)


def test_reading_an_unfilled_row_is_an_error(tmp_path: Path) -> None:
    spec = CacheSpec.of(FakeEncoder(), FakeTransform(), modality="image", dtype="float16")
    cache = StateCache.open_or_create(tmp_path, spec, 5)
    with pytest.raises(ValueError, match="row 2 is not filled"):
        cache.read(np.array([2]))


def test_second_writer_is_refused(tmp_path: Path) -> None:
    inputs = make_inputs(some_media())
    cache, _, _ = run(tmp_path, some_media())
    with cache.lock(), pytest.raises(UserError, match="another process is filling"):
        fill(cache, inputs, FakeEncoder())


def test_cut_files_are_made_anew(tmp_path: Path) -> None:
    cache, _, _ = run(tmp_path, some_media())
    values = cache.folder / "values.bin"
    values.write_bytes(values.read_bytes()[:100])
    again, report, _ = run(tmp_path, some_media())
    assert report.computed == 50 and again.read(every(again)).mask.any(dim=1).all()


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="No space left") as caught:
        run(tmp_path, some_media())
    assert "\n" not in str(caught.value)


def test_pickled_cache_maps_its_files_again(tmp_path: Path) -> None:
    cache, _, _ = run(tmp_path, some_media())
    cache.read(every(cache))
    document = pickle.dumps(cache)
    assert len(document) < 4096
    copy = pickle.loads(document)
    assert torch.equal(copy.read(every(cache)).values, cache.read(every(cache)).values)


def test_killed_fill_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > 230:
            raise Killed

    media = some_media(300)
    whole, _, _ = run(tmp_path / "whole", media)
    encoder = FakeEncoder()
    with pytest.raises(Killed):
        fill_cache(
            tmp_path / "cut", make_inputs(media), encoder, "image", batch_size=8, progress=kill
        )
    cut, report, encoded = run(tmp_path / "cut", media)
    assert 0 < report.kept < 300 and encoded == report.computed == 300 - report.kept
    for name in ("values", "mask", "pooled", "keys", "status"):
        file = f"{name}.bin"
        assert (cut.folder / file).read_bytes() == (whole.folder / file).read_bytes(), name


def test_reading_ten_times_the_memory_allowed_grows_no_anonymous_memory(tmp_path: Path) -> None:
    # 10 x 24 MB of states; the process may grow by 24 MB of anonymous memory.
    num_items, tokens, width, allowed = 40_000, 16, 192, 24_000_000
    spec = CacheSpec("image", "t", "w", tokens, width, 1, "float16")
    cache = StateCache.open_or_create(tmp_path, spec, num_items)
    assert (cache.folder / "values.bin").stat().st_size >= 10 * allowed
    (cache.folder / "status.bin").write_bytes(b"\x01" * num_items)
    (cache.folder / "mask.bin").write_bytes(b"\x01" * num_items * tokens)
    (tmp_path / "spec.json").write_text(json.dumps(vars(spec)))
    program = f"""
        import json, numpy as np
        from pathlib import Path
        from mmrec.data.cache import CacheSpec, StateCache
        def anonymous():
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        spec = CacheSpec(**json.loads(Path({str(tmp_path / "spec.json")!r}).read_text()))
        cache = StateCache.open_or_create(Path({str(tmp_path)!r}), spec, {num_items})
        order = np.random.default_rng(0).permutation({num_items})
        for start in range(0, 10 * 256, 256):  # the allocator takes its pools
            cache.read(order[start : start + 256])
        before, largest = anonymous(), 0
        for start in range(0, {num_items}, 256):
            cache.read(order[start : start + 256])
            largest = max(largest, anonymous())
        print(largest - before)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(result.stdout) < allowed
