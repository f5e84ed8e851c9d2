"""Draws the pictures, sounds and texts of a simulated catalogue from hidden attributes.

Every function takes a random generator and the attributes that must show; everything else (place,
size, colours, pitch, loudness, wording) is drawn at random, so that neither a mean colour nor a
mean spectrum nor one word tells an attribute apart.

    texture, shape  -> picture (side, side, 3) uint8
    gesture, timbre -> sound   (samples,) float32 at 16 kHz
    topic, mood     -> title and description
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

TEXTURES = ("plain", "striped", "checked", "dotted")
SHAPES = ("disc", "square", "triangle", "star")
GESTURES = ("rising", "falling", "pulsing", "trembling")
TIMBRES = ("pure", "hollow", "bright", "breathy")
TOPICS = ("sea", "mountain", "city", "kitchen")
MOODS = ("calm", "tense", "funny", "sad")

SAMPLE_RATE_HZ = 16_000

Floats = NDArray[np.float64]

_TOPIC_WORDS: dict[str, tuple[str, ...]] = {
    "sea": (
        "harbour",
        "tide",
        "lighthouse",
        "sailors",
        "a trawler",
        "the reef",
        "salt spray",
        "an island ferry",
        "whales",
        "the pier",
    ),
    "mountain": (
        "a glacier",
        "the summit",
        "climbers",
        "an alpine hut",
        "a ridge",
        "avalanche country",
        "shepherds",
        "a high pass",
        "pine slopes",
        "base camp",
    ),
    "city": (
        "a tram line",
        "rooftops",
        "the night bus",
        "a tower block",
        "traffic",
        "an underground station",
        "street vendors",
        "neon signs",
        "commuters",
        "a crowded square",
    ),
    "kitchen": (
        "a bakery",
        "the stove",
        "a pastry chef",
        "simmering broth",
        "fresh bread",
        "a family recipe",
        "spices",
        "the dinner table",
        "copper pans",
        "a noodle stall",
    ),
}
_MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "calm": ("gentle", "unhurried", "quiet", "peaceful"),
    "tense": ("gripping", "nervous", "breathless", "dark"),
    "funny": ("playful", "absurd", "witty", "silly"),
    "sad": ("wistful", "bitter", "mournful", "lonely"),
}
_PEOPLE = ("two sisters", "an old teacher", "a runaway", "three friends", "a detective", "a widow")
_DEEDS = (
    "keep a promise",
    "look for a lost letter",
    "start again",
    "settle an old debt",
    "wait for news",
    "learn to trust a stranger",
)
_FORMS = ("story", "portrait", "tale", "diary", "chronicle", "sketch")
_TITLE_NOUNS = ("Promise", "Letter", "Winter", "Stranger", "Return", "Hour", "Secret", "Summer")
_TEMPLATES = (
    "A {mood} {form} in which {who} must {deed}, between {first} and {second}.",
    "{Who} must {deed}. Somewhere near {first}, with {second} never far away; {mood} to the end.",
    "What happens when {who} must {deed}? {First}, {second}, and a {mood} ending.",
    "The {mood} {form} of {who}. {First} and {second} change everything as they {deed}.",
    "They came for {first} and stayed for {second}: a {mood} {form} about how {who} had to {deed}.",
)
_ASIDES = (
    " Not another film about {other}.",
    " From the makers of a series on {other}.",
    " Those who expect {other} will be surprised.",
    "",
    "",
)


def draw_picture(
    rng: np.random.Generator, *, texture: str, shape: str, side: int = 96
) -> NDArray[np.uint8]:
    """Draws one subject of a given texture and shape on a random background.

    Args:
        rng: Source of place, size, turn, colours, shading and noise.
        texture: One of TEXTURES, the filling of the subject.
        shape: One of SHAPES, its outline.
        side: Width and height in pixels.

    Returns:
        (side, side, 3) uint8.
    """
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float64)
    background = _shaded(rng, rows, columns, rng.uniform(30, 225, 3), side)
    light, dark = _two_colours(rng)
    weave = _weave(rng, texture, rows, columns, side)
    subject = dark + (light - dark) * weave[..., None]
    outline = _outline(rng, shape, side)[..., None]
    picture = background * (1 - outline) + subject * outline
    picture = picture + rng.normal(0, rng.uniform(2, 8), picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _shaded(
    rng: np.random.Generator, rows: Floats, columns: Floats, colour: Floats, side: int
) -> Floats:
    """One colour that slowly grows lighter in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = (rows * np.sin(angle) + columns * np.cos(angle)) / side
    shaded: Floats = colour + rng.uniform(10, 40) * slope[..., None]
    return shaded


def _two_colours(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two random colours whose brightness differs enough to be told apart."""
    while True:
        first, second = rng.uniform(10, 245, 3), rng.uniform(10, 245, 3)
        if abs(first.mean() - second.mean()) > 80:
            return first, second


def _weave(
    rng: np.random.Generator, texture: str, rows: Floats, columns: Floats, side: int
) -> Floats:
    """Share of the first colour at each pixel, (side, side) in 0..1."""
    if texture == "plain":
        # between the two colours: a plain subject is no darker on average than a striped one
        return np.full_like(rows, rng.uniform(0.2, 0.8))
    period = side * rng.uniform(0.11, 0.16)
    angle = rng.uniform(0, np.pi)
    along = (rows * np.sin(angle) + columns * np.cos(angle)) / period + rng.uniform()
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / period + rng.uniform()
    if texture == "striped":
        wave = np.sin(2 * np.pi * along)
    elif texture == "checked":
        wave = np.sin(np.pi * along) * np.sin(np.pi * across) * 2
    elif texture == "dotted":
        distance = np.hypot(along % 1 - 0.5, across % 1 - 0.5)
        wave = (0.3 - distance) * 8
        wave = wave if rng.uniform() < 0.5 else -wave
    else:
        raise ValueError(f"texture {texture!r} is not one of {TEXTURES}")
    share: Floats = np.clip(0.5 + 2.0 * wave, 0, 1)
    return share


def _outline(rng: np.random.Generator, shape: str, side: int) -> Floats:
    """Mask of the subject, (side, side) in 0..1, at a random place, size and turn."""
    scale = 4  # drawn larger and reduced, for smooth edges
    radius = side * rng.uniform(0.32, 0.48)
    centre = side / 2 + rng.uniform(-0.12, 0.12, 2) * side
    turn = rng.uniform(0, 2 * np.pi)
    corners = {"disc": 48, "square": 4, "triangle": 3, "star": 10}
    if shape not in corners:
        raise ValueError(f"shape {shape!r} is not one of {SHAPES}")
    angles = turn + np.arange(corners[shape]) * 2 * np.pi / corners[shape]
    reach = np.full(len(angles), radius)
    if shape == "star":
        reach[1::2] *= 0.55
    points = np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], 1)
    canvas = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(canvas).polygon([(x * scale, y * scale) for x, y in points.tolist()], fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    mask: Floats = np.asarray(small, dtype=np.float64) / 255
    return mask


def synthesise_sound(
    rng: np.random.Generator, *, gesture: str, timbre: str, duration_s: float = 2.0
) -> NDArray[np.float32]:
    """Synthesises one tone whose course in time is the gesture.

    Rising and falling are each other's reverse in time and have the same mean spectrum; pitch,
    range, loudness and noise are random.

    Args:
        rng: Source of all that is not named.
        gesture: One of GESTURES.
        timbre: One of TIMBRES.
        duration_s: Length; up to a tenth more or less is drawn.

    Returns:
        (samples,) float32 in -1..1, at SAMPLE_RATE_HZ.
    """
    num_samples = int(SAMPLE_RATE_HZ * duration_s * rng.uniform(0.9, 1.1))
    progress = np.linspace(0, 1, num_samples)
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    octaves = np.zeros(num_samples)
    loudness = np.ones(num_samples)
    if gesture in ("rising", "falling"):
        octaves = (progress - 0.5) * rng.uniform(1.2, 2.0) * (1 if gesture == "rising" else -1)
    elif gesture == "pulsing":
        beat = np.sin(2 * np.pi * (rng.uniform(2.5, 4.0) * seconds + rng.uniform()))
        loudness = np.clip(0.5 + 3 * beat, 0.02, 1)
    elif gesture == "trembling":
        trill = np.sin(2 * np.pi * (rng.uniform(7.0, 10.0) * seconds + rng.uniform()))
        octaves = np.clip(3 * trill, -1, 1) * rng.uniform(0.25, 0.4)
    else:
        raise ValueError(f"gesture {gesture!r} is not one of {GESTURES}")
    pitch_hz = 2 ** rng.uniform(np.log2(260), np.log2(700)) * 2**octaves
    tone = _tone(rng, timbre, pitch_hz) * loudness
    tone = tone + rng.normal(0, 10 ** rng.uniform(-2.2, -1.5), num_samples)
    fade = np.clip(np.minimum(progress, 1 - progress) * 40, 0, 1)  # no click at either end
    sound: Floats = tone * fade * rng.uniform(0.2, 0.7) / max(1e-9, float(np.abs(tone).max()))
    return sound.astype(np.float32)


def _tone(rng: np.random.Generator, timbre: str, pitch_hz: Floats) -> Floats:
    """A sum of harmonics along a course of pitch, (samples,)."""
    weights = {
        "pure": (1.0, 0.1),
        "hollow": (1.0, 0.0, 0.5, 0.0, 0.3),
        "bright": (1.0, 0.7, 0.6, 0.5, 0.4, 0.3),
        "breathy": (1.0, 0.3),
    }
    if timbre not in weights:
        raise ValueError(f"timbre {timbre!r} is not one of {TIMBRES}")
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    tone = np.zeros(len(pitch_hz))
    for harmonic, weight in enumerate(weights[timbre], start=1):
        if weight:
            tone += weight * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    if timbre == "breathy":
        tone += rng.normal(0, 0.15, len(tone))
    return tone


def write_text(rng: np.random.Generator, *, topic: str, mood: str) -> tuple[str, str]:
    """Writes a title and a description in one of several wordings.

    Two words of the topic appear; in three of five texts an aside names a word of another topic,
    so that no single word decides.

    Args:
        rng: Source of wording.
        topic: One of TOPICS.
        mood: One of MOODS.

    Returns:
        title, description.
    """
    first, second = (str(w) for w in rng.choice(_TOPIC_WORDS[topic], 2, replace=False))
    other_topic = str(rng.choice([t for t in TOPICS if t != topic]))
    who, mood_word = str(rng.choice(_PEOPLE)), str(rng.choice(_MOOD_WORDS[mood]))
    words = {
        "first": first,
        "second": second,
        "First": _capital(first),
        "mood": mood_word,
        "form": str(rng.choice(_FORMS)),
        "who": who,
        "Who": _capital(who),
        "deed": str(rng.choice(_DEEDS)),
        "other": str(rng.choice(_TOPIC_WORDS[other_topic])),
    }
    description = str(rng.choice(_TEMPLATES)) + str(rng.choice(_ASIDES))
    title = f"The {_capital(str(rng.choice(_MOOD_WORDS[mood])))} {rng.choice(_TITLE_NOUNS)}"
    return title, description.format(**words)


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
