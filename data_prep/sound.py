"""Sound: to FLAC for a shard, and from it the stretches that are asked for.

    file -> to_flac -> bytes -> Sound(bytes).read(start, stop) -> samples (n, channels)

Neither holds more than a stretch as samples: an hour in stereo is 1.3 GB of them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.errors import BrokenMedium, one_line
from data_prep.medium_file import Source, opened, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    _Block = tuple[int, int, NDArray[np.float32]]
    # rate, samples of a channel in the whole sound (0: not known), samples (n, channels) of a block

# soundfile is imported where it is used: a worker that meets only images never loads it

NO_SOUND = "broken audio: there is no sound in the file"
MAX_SECONDS = 600
"""Kept of a sound: ten times what encoders hear unless told otherwise; a song is kept whole."""
NUM_STRETCHES = 20
"""Of a longer sound, at even distances from its start to its end, one behind the other."""
_BLOCK_SAMPLES = 2**18
_MAX_SAMPLES = 2**48
"""Above what any file holds: where a header does not say how many there are, a reader says so."""


class Sound:
    """A sound of which stretches are decoded when they are asked for.

    What cannot be sought in (anything but whole FLAC) is decoded at once.

    Args:
        data: the bytes, as `normalise` gives them or as they come.

    Attributes:
        rate_hz: of the samples.
        num_samples: a channel has.

    Raises:
        BrokenMedium: there is no sound in the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._samples: NDArray[np.float32] | None = None
        self.rate_hz, self.num_samples = _seekable(data)
        if self.num_samples == 0:
            self._samples, self.rate_hz = decode_audio(data)
            self.num_samples = len(self._samples)

    def __repr__(self) -> str:
        return f"Sound({self.num_samples} samples, {self.rate_hz} Hz)"

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Samples [start, stop): (n, channels) float32 in [-1, 1]; all of them by default.

        Raises:
            BrokenMedium: they do not decode.
        """
        import soundfile

        stop = self.num_samples if stop is None else stop
        if self._samples is not None:
            return self._samples[start:stop]
        try:
            with soundfile.SoundFile(io.BytesIO(self._data)) as file:
                file.seek(start)
                samples: NDArray[np.float32] = file.read(
                    stop - start, dtype="float32", always_2d=True
                )
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise BrokenMedium(f"broken audio: {one_line(error)}") from error
        if len(samples) < min(stop, self.num_samples) - start:
            raise BrokenMedium("broken audio: it ends earlier than it says")
        if not np.isfinite(samples).all():
            raise BrokenMedium("broken audio: samples that are not numbers")
        return samples


def _seekable(data: bytes) -> tuple[int, int]:
    """Rate and number of samples of a FLAC that decodes at its end; else no samples."""
    import soundfile

    if data[:4] != b"fLaC":
        return 0, 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not 0 < file.frames < _MAX_SAMPLES:
                return 0, 0
            file.seek(file.frames - 1)
            return file.samplerate, file.frames if len(file.read(1)) else 0
    except (soundfile.SoundFileError, RuntimeError):
        return 0, 0


def decode_audio(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Decode sound: samples (num_samples, channels) float32 in [-1, 1] and the rate in Hz.

    soundfile reads most formats; what it cannot (AAC, a film's sound track) goes through PyAV.

    Raises:
        BrokenMedium: there is no sound in the bytes.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError):
        blocks = list(_blocks_of_av(data))
        rate = blocks[0][0] if blocks else 0
        silence = np.empty((0, 1), np.float32)
        samples = np.concatenate([each for _, _, each in blocks]) if blocks else silence
    if samples.shape[0] == 0:
        raise BrokenMedium("broken audio: it holds no samples")
    if not np.isfinite(samples).all():
        raise BrokenMedium("broken audio: samples that are not numbers")
    return samples, int(rate)


def to_flac(source: Source) -> bytes:
    """FLAC with 16 bits a sample: an Ogg stream carries a random serial, FLAC is reproducible.

    FLAC of one or two channels keeps its bytes; more channels become one. Of a sound longer than
    ten minutes twenty stretches of half a minute are kept.

    Raises:
        BrokenMedium: there is no sound in it, or it does not decode.
        OSError: the file cannot be read.
    """
    import soundfile

    try:
        return _encode_flac(source, _blocks_of_soundfile(source))
    except (soundfile.SoundFileError, RuntimeError):
        return _encode_flac(source, _blocks_of_av(source))


def _encode_flac(source: Source, blocks: Iterator[_Block]) -> bytes:
    """Blocks of samples as FLAC; the bytes themselves where they are FLAC already."""
    import soundfile

    with opened(source) as start:
        is_flac = start.read(4) == b"fLaC"
    buffer = io.BytesIO()
    file, kept = None, False
    try:
        for rate, length, block in _stretches(blocks):
            if not np.isfinite(block).all():
                raise BrokenMedium("broken audio: samples that are not numbers")
            if len(block) == 0:
                continue
            kept = kept or (is_flac and block.shape[1] <= 2 and length <= MAX_SECONDS * rate)
            if kept:
                continue  # only looked through
            if block.shape[1] > 2:
                block = block.mean(axis=1, keepdims=True)
            if file is None:
                channels = block.shape[1]
                file = soundfile.SoundFile(
                    buffer, "w", rate, channels, format="FLAC", subtype="PCM_16"
                )
            file.write(np.clip(block, -1, 1))
    finally:
        if file is not None:
            file.close()
    if kept:
        return whole(source)
    if file is None:
        raise BrokenMedium("broken audio: it holds no samples")
    return buffer.getvalue()


def _stretches(blocks: Iterator[_Block]) -> Iterator[_Block]:
    """What is kept of blocks: all, or of a longer sound its stretches."""
    begin = 0
    for rate, length, block in blocks:
        end = begin + len(block)
        if length <= MAX_SECONDS * rate:
            yield rate, length, block
        else:
            size = int(MAX_SECONDS * rate) // NUM_STRETCHES
            for place in range(NUM_STRETCHES):
                start = place * (length - size) // (NUM_STRETCHES - 1)
                if start < end and start + size > begin:
                    first, last = max(start - begin, 0), min(start + size, end) - begin
                    yield rate, length, block[first:last]
        begin = end


def _blocks_of_soundfile(source: Source) -> Iterator[_Block]:
    """Rate, length and samples (n, channels), block by block."""
    import soundfile

    with opened(source) as medium, soundfile.SoundFile(medium) as file:
        length = file.frames if file.frames < _MAX_SAMPLES else 0
        # not file.blocks(): where a stream ends before its header says, that pads the last block
        # with whatever the memory held
        while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield file.samplerate, length, block


def _blocks_of_av(source: Source) -> Iterator[_Block]:
    """The same of whatever FFmpeg decodes.

    Raises:
        BrokenMedium: there is no sound in the bytes, or it does not decode.
    """
    import av

    try:
        with opened(source) as medium, av.open(medium, mode="r") as container:
            if not container.streams.audio:
                raise BrokenMedium(NO_SOUND)
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            length = _length_of_av(container, stream, rate)
            # a frame has a fortieth of a second: written one by one they took twice as long
            for pieces in _grouped(_pieces(container, rate)):
                yield rate, length, np.concatenate(pieces)
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        if isinstance(error, BrokenMedium):
            raise
        raise BrokenMedium(f"broken audio: {one_line(error)}") from error


def _length_of_av(container: Any, stream: Any, rate: int) -> int:
    """Samples of a channel, as the file says; 0 where it does not, and then all are kept."""
    if stream.duration is not None and stream.time_base is not None:
        return int(stream.duration * stream.time_base * rate)
    return 0 if container.duration is None else int(container.duration * rate // 1_000_000)


def _pieces(container: Any, rate: int) -> Iterator[NDArray[np.float32]]:
    """Samples (n, channels) as frames hold them."""
    import av

    resampler = av.AudioResampler(format="fltp", rate=rate)
    for frame in container.decode(audio=0):
        yield from _planes(resampler.resample(frame))
    yield from _planes(resampler.resample(None))


def _grouped(pieces: Iterator[NDArray[np.float32]]) -> Iterator[list[NDArray[np.float32]]]:
    """Pieces of equally many channels together, about a block of them."""
    group: list[NDArray[np.float32]] = []
    size = 0
    for piece in pieces:
        if group and (size >= _BLOCK_SAMPLES or piece.shape[1] != group[0].shape[1]):
            yield group
            group, size = [], 0
        group.append(piece)
        size += len(piece)
    if group:
        yield group


def _planes(frames: list[Any]) -> list[NDArray[np.float32]]:
    return [np.ascontiguousarray(frame.to_ndarray().T, dtype=np.float32) for frame in frames]
