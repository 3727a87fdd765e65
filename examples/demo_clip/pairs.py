"""The pictures and words that the demonstration CLIP's heads are trained on.

From three Debian sources, none of them Tux Paint: openclipart's drawings with title and keywords,
Noto's emoji with their CLDR names, and the picture words of pysiogame (art4apps).

    apt-get install openclipart-png openclipart-svg pysiogame \\
        fonts-noto-color-emoji unicode-cldr-core
"""

import html
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

OPENCLIPART = Path("/usr/share/openclipart")
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_NAMES = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
ART4APPS = Path("/usr/share/games/pysiogame/res/images/art4apps")
MAX_PIXELS = 2_000_000
MAX_KEYWORDS = 6
MAX_SHARED = 4
"""Drawings with the same title, beyond which it names a collection and no picture."""
EMOJI_FONT_SIZE = 109
"""The only size at which Noto's bitmaps exist."""
EMOJI_CANVAS = (136, 128)
VAGUE_KEYWORDS = frozenset(
    {"clip art", "clipart", "color", "colour", "drawing", "externalsource", "hash", "image"}
    | {"media", "openclipart", "png", "public domain", "publicdomain", "svg", "unsorted"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """A picture and the texts that say what it shows, the best first."""

    name: str
    texts: tuple[str, ...]
    picture: Callable[[], Image.Image]


def on_white(image: Image.Image) -> Image.Image:
    """Returns the picture in RGB, its transparent parts white."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def opened(path: Path) -> Image.Image:
    """Returns the picture in a file, on white."""
    with Image.open(path) as image:
        return on_white(image)


def is_small_enough(path: Path) -> bool:
    """Returns whether the header promises a picture that is safe to decode."""
    try:
        with warnings.catch_warnings(action="error"), Image.open(path) as image:
            return image.width * image.height <= MAX_PIXELS
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def spelled(text: str) -> str:
    """Returns a title or keyword without markup, numbers at its end and underscores."""
    words = re.sub(r"[\s_]+", " ", html.unescape(text)).strip().lower()
    return re.sub(r"[\s\-#]*\d+$", "", words).strip(" .")


def title_and_keywords(svg: Path) -> tuple[str, list[str]]:
    """Returns what an openclipart drawing says of itself, both empty if it says nothing."""
    text = svg.read_text(encoding="utf-8", errors="replace")
    metadata = text.partition("<metadata")[2].partition("</metadata>")[0]
    title = re.search(r"<dc:title>(.*?)</dc:title>", metadata, re.DOTALL)
    keywords = [
        spelled(word) for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", metadata, re.DOTALL)
    ]
    kept = [word for word in dict.fromkeys(keywords) if word and word not in VAGUE_KEYWORDS]
    return (spelled(title.group(1)) if title else ""), kept[:MAX_KEYWORDS]


def openclipart_pairs() -> Iterator[TrainingPair]:
    """Yields openclipart's drawings; those without title or with huge pictures are left out."""
    for png in sorted((OPENCLIPART / "png").rglob("*.png")):
        relative = png.relative_to(OPENCLIPART / "png")
        svg = (OPENCLIPART / "svg" / relative).with_suffix(".svg")
        if not svg.exists() or not is_small_enough(png):
            continue
        title, keywords = title_and_keywords(svg)
        if len(title) < 3:
            continue
        texts = [title, ", ".join([title, *keywords]), ", ".join(keywords)]
        yield TrainingPair(
            name=f"openclipart/{relative}",
            texts=tuple(dict.fromkeys(text for text in texts if text)),
            picture=partial(opened, png),
        )


def drawn_emoji(emoji: str) -> Image.Image:
    """Returns an emoji as Noto draws it."""
    font = ImageFont.truetype(EMOJI_FONT, EMOJI_FONT_SIZE)
    image = Image.new("RGB", EMOJI_CANVAS, "white")
    ImageDraw.Draw(image).text((0, 0), emoji, font=font, embedded_color=True)
    return image


def emoji_pairs() -> Iterator[TrainingPair]:
    """Yields the emoji of one code point, with their CLDR name and keywords."""
    font = ImageFont.truetype(EMOJI_FONT, EMOJI_FONT_SIZE)
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for annotation in ElementTree.parse(EMOJI_NAMES).getroot().iter("annotation"):
        kind = names if annotation.get("type") == "tts" else keywords
        kind[str(annotation.get("cp"))] = annotation.text or ""
    for emoji, name in names.items():
        if len(emoji) != 1 or ord(emoji) < 0x203C or font.getmask(emoji).getbbox() is None:
            continue
        listed = keywords.get(emoji, name).replace(" | ", ", ")
        yield TrainingPair(
            name=f"emoji/{ord(emoji):x}",
            texts=tuple(dict.fromkeys([name, f"{name}, {listed}", listed])),
            picture=partial(drawn_emoji, emoji),
        )


def art4apps_pairs() -> Iterator[TrainingPair]:
    """Yields pysiogame's pictures, each with the word that is its name."""
    for path in sorted(ART4APPS.rglob("*.jpg")):
        word = re.sub(r"\d+$", "", path.stem.replace("_", " ")).strip()
        topic = path.parent.name.replace("_n_", " and ").replace("_", " ")
        yield TrainingPair(
            name=f"art4apps/{path.parent.name}/{path.name}",
            texts=(word, f"{word}, {topic}"),
            picture=partial(opened, path),
        )


def training_pairs() -> list[TrainingPair]:
    """Returns all pairs, in an order that does not change."""
    missing = [p for p in (OPENCLIPART, EMOJI_FONT, EMOJI_NAMES, ART4APPS) if not p.exists()]
    if missing:
        raise SystemExit(f"{missing[0]} is missing; the packages to install: {__doc__}")
    drawings = list(openclipart_pairs())
    shared = Counter(pair.texts[0] for pair in drawings)
    named = [pair for pair in drawings if shared[pair.texts[0]] <= MAX_SHARED]
    random.Random(0).shuffle(named)
    return [*emoji_pairs(), *art4apps_pairs(), *named]
