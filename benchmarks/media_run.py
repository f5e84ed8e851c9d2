"""A run whose encoders have the size of pretrained ones, on generated media, for benchmarks of use.

MiniLM, EfficientNet-lite0 on pictures and on eight frames of a clip, and musicnn, all with random
weights: time does not depend on them. A few items train for one epoch; others join the data later,
so that a use of the run has to encode them from their raw media.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
import soundfile
from bench_cache import MINILM
from PIL import Image

from data_prep.prepare import prepare
from encoders.text_transform import train_vocabulary
from mmrec.config import parse_config
from mmrec.training.train import train

COLUMNS = {"text": ["title", "plot"], "image": ["picture"], "audio": ["sound"], "video": ["film"]}
WIDTH, HEIGHT = 320, 256
WORDS_A_TEXT = 30
SOUND_S, SOUND_HZ = 4, 22_050
CLIP_S, FPS = 6, 12
NUM_TRAINED = 8

Row = dict[str, str]


class Source:
    """A folder of tables and media that items are added to.

    Args:
        folder: a new folder.
        modalities: that every item has.
    """

    def __init__(self, folder: Path, modalities: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.modalities = folder, modalities
        self.rows: list[Row] = []
        self._random = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        lengths = self._random.integers(3, 10, 2000)
        self.words = ["".join(self._random.choice(letters, length)) for length in lengths]
        self._grain = self._random.normal(0, 6, size=(HEIGHT, WIDTH, 1))
        columns: dict[str, Any] = {name: COLUMNS[name] for name in modalities}
        document = {
            "name": "generated",
            "kind": "video",
            "items": {"table": "items.csv", "id": "item_id", **columns},
            "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "order"},
        }
        (folder / "catalogue.yaml").write_text(json.dumps(document))

    def add(self, num_items: int) -> None:
        """More items, and the tables with them; the log names the first ones alone."""
        for number in range(len(self.rows), len(self.rows) + num_items):
            row = {"item_id": f"i{number}"}
            for modality in self.modalities:
                row |= getattr(self, f"_{modality}")(number)
            self.rows.append(row)
        with (self.folder / "items.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        steps = range(NUM_TRAINED - 1)
        log = [[user, f"i{(user + at) % NUM_TRAINED}", at] for user in range(20) for at in steps]
        with (self.folder / "log.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["user", "item", "order"], *log])

    def prepare(self, out: Path) -> None:
        """The prepared folder, or what is new put into it."""
        prepare(self.folder / "catalogue.yaml", self.folder, out, num_workers=1, update=True)

    def _text(self, _number: int) -> Row:
        title, plot = (" ".join(self._random.choice(self.words, n)) for n in (4, WORDS_A_TEXT))
        return {"title": title, "plot": plot}

    def _pixels(self, number: int) -> Any:
        coarse = Image.fromarray(self._random.integers(0, 256, size=(8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        return np.clip(smooth + np.roll(self._grain, number, axis=0), 0, 255).astype(np.uint8)

    def _image(self, number: int) -> Row:
        data = simplejpeg.encode_jpeg(self._pixels(number), quality=90)
        (self.folder / f"{number}.jpg").write_bytes(data)
        return {"picture": f"{number}.jpg"}

    def _audio(self, number: int) -> Row:
        time = np.arange(SOUND_S * SOUND_HZ) / SOUND_HZ
        tone = np.sin(2 * np.pi * self._random.uniform(100, 2000) * time)
        sound = 0.3 * tone + self._random.normal(0, 0.05, len(time))
        soundfile.write(self.folder / f"{number}.flac", sound.astype(np.float32), SOUND_HZ)
        return {"sound": f"{number}.flac"}

    def _video(self, number: int) -> Row:
        path = self.folder / f"{number}.mp4"
        pixels = self._pixels(number)
        with av.open(str(path), "w", format="mp4") as container:
            video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in range(CLIP_S * FPS):
                shown = np.ascontiguousarray(np.roll(pixels, 3 * frame, axis=1))
                container.mux(video.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(video.encode())
        return {"film": path.name}


def write_minilm(folder: Path, words: Sequence[str]) -> Path:
    """A folder of weights as `encoders.text.weights` takes it: of MiniLM's size, random."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    arguments = dict(MINILM)
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    AutoModel.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_vocabulary(words, 4000), encoding="utf-8")
    return folder


def encoders(modalities: Sequence[str], minilm: Path) -> dict[str, dict[str, Any]]:
    """Settings of the encoders, each of which trains from its raw media."""
    image = {"kind": "timm", "architecture": "tf_efficientnet_lite0"}
    found: dict[str, dict[str, Any]] = {
        "text": {"kind": "transformers", "weights": str(minilm), "num_tokens": 32},
        "image": {**image, "num_tokens": 16},
        "audio": {"kind": "musicnn", "num_tokens": 16},
        "video": {**image, "num_tokens": 8, "options": {"frames": 8}},
    }
    return {name: {**found[name], "trainable_blocks": "all"} for name in modalities}


def train_media_run(folder: Path, modalities: Sequence[str]) -> tuple[Source, Path, Path]:
    """A source with a few items, the folder they are prepared in, and a run trained on them.

    Args:
        folder: where all of it is made.
        modalities: of text, image, audio, video.
    """
    source = Source(folder / "source", modalities)
    source.add(NUM_TRAINED)
    data, run = folder / "data", folder / "run"
    source.prepare(data)
    minilm = write_minilm(folder / "minilm", source.words)
    config = parse_config(
        {
            "name": "media",
            "encoders": encoders(modalities, minilm),
            "training": {"max_epochs": 1, "batch_size": 20, "precision": "fp32"},
        }
    )
    train(config, data, run)
    return source, data, run
