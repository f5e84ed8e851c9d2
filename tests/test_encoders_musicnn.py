"""musicnn: the published graph's numbers, its patches, its checkpoint without TensorFlow."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import encoders.musicnn
from encoders.musicnn import (
    NUM_MELS,
    PATCH_FRAMES,
    PATCH_SAMPLES,
    FrontEnd,
    MusicEncoder,
    MusicTransform,
)
from mmrec.tensorflow_checkpoint import MAGIC, read_checkpoint
from mmrec.weights import folder_of

RATE = 16_000


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE) -> tuple[np.ndarray, int]:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[:, None], rate


@pytest.mark.parametrize(
    ("name", "reference"), [("musicnn", "MSD_musicnn"), ("musicnn-mtt", "MTT_musicnn")]
)
def test_logits_are_those_of_the_published_graph(
    shared_data: Path, name: str, reference: str
) -> None:
    folder = folder_of(name)
    if folder is None:
        pytest.skip(f"weights {name} are not installed: mmrec weights install {name}")
    weights = load_file(folder / "model.safetensors")
    encoder = MusicEncoder(max_patches=1, num_tokens=1, weights=weights).eval()
    place = shared_data / "weights-reference"
    mel = torch.from_numpy(np.load(place / "musicnn_input.npy")).unsqueeze(1)  # (3, 1, 187, 96)
    mask = torch.ones(3, 1, dtype=torch.bool)
    with torch.inference_mode():
        tokens = encoder({"mel": mel, "mask": mask, "present": mask[:, 0]})
        logits = tokens.values[:, 0] @ weights["tags.weight"].T + weights["tags.bias"]
    expected = torch.from_numpy(np.load(place / "musicnn_logits.npz")[reference])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_long_sound_is_heard_from_its_start_to_its_end() -> None:
    transform = MusicTransform(max_seconds=12.0)
    assert transform.max_patches == 4
    parts = [tone(10.0, frequency)[0] for frequency in (150.0, 500.0, 1500.0, 5000.0)]
    sample = transform((np.concatenate(parts), RATE))
    assert sample is not None and sample.shape == (4, PATCH_FRAMES, NUM_MELS)
    peaks = [int(patch.mean(dim=0).argmax()) for patch in sample]
    assert peaks == sorted(set(peaks))


def test_the_front_end_holds_maps_of_few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full track without a gradient; the result is that of all at once."""
    monkeypatch.setattr(encoders.musicnn, "PATCHES_AT_ONCE", 2)
    torch.manual_seed(0)
    front, sizes = FrontEnd().eval(), list[int]()
    front.norm.register_forward_hook(lambda _module, _inputs, maps: sizes.append(len(maps)))
    mel = torch.rand(5, PATCH_FRAMES, NUM_MELS)
    whole = front(mel).detach()
    with torch.no_grad():
        torch.testing.assert_close(front(mel), whole, atol=1e-5, rtol=1e-5)
    assert sizes == [5, 2, 2, 1]


@pytest.mark.parametrize(
    ("seconds", "patches"), [(0.01, 1), (1.0, 1), (3.0, 1), (5.9, 1), (6.1, 2), (60.0, 20)]
)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_sound_has_as_many_patches_as_it_fills(seconds: float, patches: int, rate: int) -> None:
    sample = MusicTransform()(tone(seconds, rate=rate))
    assert sample is not None and len(sample) == patches and bool(sample.isfinite().all())


def test_a_short_sound_is_repeated_and_nothing_is_none() -> None:
    sample = MusicTransform()(tone(1.0))
    assert sample is not None
    frames = 1 + RATE // 256
    torch.testing.assert_close(sample[0, :frames], sample[0, frames : 2 * frames])
    assert MusicTransform()((np.zeros((0, 1), np.float32), RATE)) is None
    with pytest.raises(ValueError, match="max_seconds must be at least 2.992, got 1.0"):
        MusicTransform(max_seconds=1.0)


def test_the_mel_scale_is_librosas() -> None:
    """Energies of a bank that librosa makes: triangles of equal area on Slaney's scale."""
    from torchaudio.functional import melscale_fbanks

    bank = melscale_fbanks(257, 0.0, 8000.0, NUM_MELS, RATE, norm="slaney", mel_scale="slaney")
    samples, _ = tone(PATCH_SAMPLES / RATE)
    padded = np.pad(samples[:, 0].astype(np.float64), 256)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = np.stack([padded[start : start + 512] for start in range(0, PATCH_SAMPLES, 256)])
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    expected = np.log10(10_000 * (power @ bank.double().numpy()) + 1)
    found = MusicTransform()((samples, RATE))
    assert found is not None
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-3)


def test_padding_and_neighbours_do_not_matter() -> None:
    torch.manual_seed(0)
    encoder = MusicEncoder(max_patches=4, num_tokens=4).eval()
    mel = torch.rand(1, 2, PATCH_FRAMES, NUM_MELS)
    alone = encoder(
        {"mel": mel, "mask": torch.ones(1, 2, dtype=torch.bool), "present": torch.tensor([True])}
    )
    padded = torch.full((3, 4, PATCH_FRAMES, NUM_MELS), torch.nan)
    padded[0, :2], padded[2] = mel[0], torch.rand(4, PATCH_FRAMES, NUM_MELS)
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    together = encoder({"mel": padded, "mask": mask, "present": mask.any(dim=1)})
    torch.testing.assert_close(together.values[0, :2], alone.values[0, :2])
    assert together.mask.sum(dim=1).tolist() == [2, 0, 4]
    assert bool(together.values.isfinite().all())


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights are not musicnn's"):
        MusicEncoder(max_patches=1, weights={"blocks.0.norm.weight": torch.ones(2)})


def bundle_of(tensors: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    """A tensor bundle as TensorFlow writes it: keys share beginnings, one block, no compression."""

    def varint(number: int) -> bytes:
        groups = []
        while True:
            number, low = number >> 7, number & 127
            groups.append(low | (128 if number else 0))
            if not number:
                return bytes(groups)

    def block(entries: list[tuple[bytes, bytes]]) -> bytes:
        out, before = b"", b""
        for key, value in entries:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
                min(len(key), len(before)),
            )
            rest = key[shared:]
            out += varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
            before = key
        return out + struct.pack("<II", 0, 1)

    types = {np.dtype(np.float32): 1, np.dtype(np.int64): 9}
    data, entries = b"", [(b"", b"\x08\x01")]
    for name in sorted(tensors):
        array = tensors[name]
        shape = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in
                                                                 array.shape))  # fmt: skip
        entry = b"\x08" + varint(types[array.dtype]) + b"\x12" + varint(len(shape)) + shape
        entry += b"\x20" + varint(len(data)) + b"\x28" + varint(array.nbytes)
        entry += b"\x35" + struct.pack("<I", 7)  # a checksum, which is not read
        entries.append((name.encode(), entry))
        data += array.tobytes()
    table = block(entries)
    handle = varint(0) + varint(len(table))
    index_at = len(table) + 5
    top = block([(b"z", handle)])
    footer = varint(0) + varint(0) + varint(index_at) + varint(len(top))
    index = table + bytes(5) + top + bytes(5)
    return index + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC), data


def test_a_checkpoint_is_read_back() -> None:
    tensors = {
        "conv2d/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "conv2d/bias": np.ones(300, np.float32),
        "step": np.array(7, np.int64),
    }
    found = read_checkpoint(*bundle_of(tensors))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_damaged_checkpoint_is_refused() -> None:
    index, data = bundle_of({"bias": np.ones(5, np.float32)})
    with pytest.raises(ValueError, match="does not end as one"):
        read_checkpoint(index[:-1], data)
    with pytest.raises(ValueError, match="bias: 20 bytes at 0 are no tensor"):
        read_checkpoint(index, data[:-4])
    compressed = bytearray(index)
    compressed[len(index) - 48 - 5] = 1  # the type of the last block
    with pytest.raises(ValueError, match="compressed or cut off"):
        read_checkpoint(bytes(compressed), data)
