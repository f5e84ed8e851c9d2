"""Long media: memory and rate of preparing tracks and a film, and of making their states.

A track of 10 minutes (FLAC and MP3) and a film of 20 minutes in 1080p with its sound (H.264, AAC)
are made, prepared by `mmrec prepare` in a process of its own, and encoded by random weights of the
size of trained ones. Beside them stands bare decoding with the same libraries: of all sound and of
as many key frames as a prepared film keeps, and of all sound and every frame.
One round by default: a film is decoded whole in it. About four minutes on two quiet cores.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from bench_cache import make_parts
from measure import arguments, peak_gb, report, seconds_of
from numpy.typing import NDArray

from data_prep.abridge import MAX_FRAMES
from data_prep.shards import PreparedData
from mmrec.data.fill import fill_cache
from mmrec.data.items import ItemInputs

CATALOGUE = """\
name: generated
kind: video
items: {table: items.csv, id: item_id, text: [title], audio: [sound, film], video: [film]}
interactions: {table: log.csv, user: user, item: item, order: order}
"""
TRACK_HZ, FILM_HZ, FPS = 44_100, 48_000, 25
PIECE_S, KEY_FRAME_S = 10, 5  # what of a film is encoded and then repeated; between key frames
BITS_A_SECOND = 5_000_000
MEMORY_BAR_GB = 1.0


def make_sound(duration_s: float, rate: int) -> NDArray[np.float32]:
    """Chords and noise in stereo, about as hard to compress as music: (samples, 2)."""
    rng = np.random.default_rng(0)
    time = np.arange(round(duration_s * rate)) / rate
    chord = sum(
        np.sin(2 * np.pi * each * time * (1 + 0.5 * (time // 2 % 4))) for each in (220, 277)
    )
    noise = rng.standard_normal((len(time), 2), dtype=np.float32)
    samples: NDArray[np.float32] = (0.1 * chord[:, None] + 0.03 * noise).astype(np.float32)
    return samples


def make_film(path: Path, duration_s: int, width: int, height: int) -> None:
    """An MP4 of a short piece, encoded once and repeated packet by packet."""
    pieces = duration_s // PIECE_S
    piece = io.BytesIO()
    with av.open(piece, "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "bf": "0"}
        )
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.gop_size, video.bit_rate = KEY_FRAME_S * FPS, BITS_A_SECOND
        sound = container.add_stream("aac", rate=FILM_HZ, layout="stereo")
        rng = np.random.default_rng(0)
        grain = rng.integers(0, 24, (height, width, 3), dtype=np.uint8)
        ramp = np.linspace(0, 200, width, dtype=np.uint8)[None, :, None]
        for number in range(PIECE_S * FPS):
            pixels = np.roll(ramp, 7 * number, axis=1) + np.roll(grain, 5 * number, axis=0)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        samples = np.ascontiguousarray(make_sound(PIECE_S, FILM_HZ).T)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = FILM_HZ
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with av.open(str(path), "w") as film:
        streams: dict[int, av.stream.Stream] = {}
        for number in range(pieces):
            piece.seek(0)
            with av.open(piece, "r") as container:
                for stream in container.streams:
                    streams.setdefault(stream.index, film.add_stream_from_template(stream))
                for packet in container.demux():
                    if packet.dts is None:
                        continue
                    length = int(PIECE_S / Fraction(packet.time_base))
                    if packet.stream.type == "audio" and packet.dts + 2 * packet.duration > length:
                        continue  # the next piece begins before the encoder's padding ends
                    shift = number * length
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    film.mux(packet)


def generate(source: Path, *, track_s: int, film_s: int, size: tuple[int, int]) -> None:
    """The catalogue: a track as FLAC and as MP3, a film, and a small log."""
    track = make_sound(track_s, TRACK_HZ)
    for name in ("track.flac", "track.mp3"):
        soundfile.write(source / name, track, TRACK_HZ)
    make_film(source / "film.mp4", film_s, *size)
    (source / "catalogue.yaml").write_text(CATALOGUE)
    rows = [[0, "a", "track.flac", ""], [1, "b", "track.mp3", ""], [2, "c", "", "film.mp4"]]
    with (source / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["item_id", "title", "sound", "film"], *rows])
    with (source / "log.csv").open("w", newline="") as file:
        log = [[user, (user + step) % 3, step] for user in range(20) for step in range(3)]
        csv.writer(file).writerows([["user", "item", "order"], *log])


def prepare(source: Path, out: Path) -> None:
    """`mmrec prepare` as a user runs it."""
    command = [sys.executable, "-m", "mmrec.cli", "prepare", str(source / "catalogue.yaml")]
    subprocess.run(
        [*command, "--source", str(source), "--out", str(out)], check=True, stdout=sys.stderr
    )


def decode_sounds(source: Path) -> None:
    """All sound of the catalogue, block by block."""
    for name in ("track.flac", "track.mp3"):
        with soundfile.SoundFile(source / name) as file:
            for _ in file.blocks(2**18, dtype="float32"):
                pass
    with av.open(str(source / "film.mp4")) as container:
        for frame in container.decode(audio=0):
            frame.to_ndarray()


def decode_key_frames(source: Path, num_frames: int) -> None:
    """The key frame before each of some even places."""
    with av.open(str(source / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None
        for place in range(num_frames):
            container.seek(stream.duration * (2 * place + 1) // (2 * num_frames), stream=stream)
            next(container.decode(stream))


def decode_all_frames(source: Path) -> None:
    with av.open(str(source / "film.mp4")) as container:
        for _ in container.decode(video=0):
            pass


def fill(data: PreparedData, modality: str, *, small: bool) -> None:
    """Time and memory of the states of one modality, beyond the encoder and the libraries."""
    if modality == "audio":
        parts, name = make_parts("audio", "musicnn", num_tokens=16), "musicnn"
    else:
        lite0 = {"architecture": "tf_efficientnet_lite0", "described": {}}
        parts, name = make_parts("video", "timm", num_tokens=32, **lite0), "efficientnet_lite0"
    inputs = ItemInputs(data, {modality: parts.transform})
    times: list[float] = []

    def run() -> None:
        with tempfile.TemporaryDirectory() as root:
            times.append(
                seconds_of(lambda: fill_cache(Path(root), inputs, parts.encoder, modality))
            )

    with torch.inference_mode():  # kernels and their buffers are no part of the media's memory
        example = parts.encoder.largest_inputs()
        parts.encoder(example)
    peak = peak_gb(run, beyond=True)
    config = {"encoder": name, "items": int(data.items.has(modality).sum())}
    common = {"small": small, "config": config}
    report(f"long_media_fill_{modality}_memory", [peak], unit="GB", bar=MEMORY_BAR_GB, **common)
    report(f"long_media_fill_{modality}_time", times, unit="s", **common)


def main() -> None:
    given = arguments(__doc__)
    small = given.small
    track_s, film_s, size = (20, 40, (320, 180)) if small else (600, 1200, (1920, 1080))
    config = {"tracks": 2, "track_s": track_s, "film_s": film_s, "size": size}
    common = {"small": small, "config": config}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        generate(source, track_s=track_s, film_s=film_s, size=size)
        out, times = Path(name) / "prepared", list[float]()
        peak = peak_gb(lambda: times.append(seconds_of(lambda: prepare(source, out))), beyond=True)
        report("long_media_prepare_memory", [peak], unit="GB", bar=MEMORY_BAR_GB, **common)
        report("long_media_prepare_time", times, unit="s", **common)
        minutes = (2 * track_s + film_s) / 60
        report(
            "long_media_prepare_rate",
            [minutes / each for each in times],
            unit="minutes of media/s",
            **common,
        )
        kept = sum(path.stat().st_size for path in (out / "items").glob("*.tar"))
        raw = sum(path.stat().st_size for path in source.iterdir())
        report("long_media_kept", [kept / raw], unit="ratio", **common)
        data = PreparedData.open(out)
        for modality in ("audio", "video"):
            fill(data, modality, small=small)
        sounds = seconds_of(lambda: decode_sounds(source))
        needed = sounds + seconds_of(lambda: decode_key_frames(source, MAX_FRAMES))
        whole = sounds + seconds_of(lambda: decode_all_frames(source))
        for beside, seconds in (("needed", needed), ("whole", whole)):
            report(f"long_media_bare_{beside}_time", [seconds], unit="s", **common)
            ratios = [seconds / each for each in times]
            report(f"long_media_prepare_to_bare_{beside}", ratios, unit="ratio", **common)


if __name__ == "__main__":
    main()
