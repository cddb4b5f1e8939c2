"""What a load asks: images with prompts, from demo scenes, a folder or a JSONL file."""

import base64
import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar, cast

from PIL import Image, ImageOps

from simpleseg.batch import BatchError
from simpleseg.batch.source import Entry, read_source
from simpleseg.batch.stored import Cell, Member
from simpleseg.schema import PromptItem, SegmentRequest
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.rle import Rle, mask_to_rle

T = TypeVar("T")
ImageFormat = Literal["png", "jpeg"]
DEMO_SETS = ("demo-single", "demo-multi", "demo-hard")
PACKAGED = "packaged"
_DEMO_SIZE_PX = 512
_RECENT_IMAGES = 32
_SAMPLES = "samples.json"


@dataclass(frozen=True)
class Question:
    """A request of a load: an image, the other fields of ``POST /segment``, and the truth.

    ``image`` is that request's field, {"base64": ...} or {"url": ...}; ``image_name`` tells images
    apart. ``truths`` holds the true mask of each prompt, of any size, and is empty where there is
    none.
    """

    image_name: str
    image: Mapping[str, str] = field(repr=False)
    fields: Mapping[str, Any]
    truths: tuple[Rle, ...] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        """The same for the same image and prompts."""
        return json.dumps([self.image_name, self.fields], sort_keys=True)

    def prompts(self) -> tuple[PromptItem, ...]:
        return SegmentRequest.model_validate({**self.fields, "image": dict(self.image)}).items()


@dataclass(frozen=True)
class Pictures:
    """How images are sent: each in its own bytes, or scaled to ``sizes`` by turns."""

    sizes: Sequence[ImageSize] = ()
    format: ImageFormat = "png"


def load_questions(
    data: str,
    *,
    phrases: Sequence[str] = (),
    limit: int = 64,
    pictures: Pictures = Pictures(),
) -> list[Question]:
    """At most ``limit`` questions from ``data``: a demo set (which the extra ``training`` draws),
    ``packaged``, a folder of images to ask ``phrases`` about, or a JSONL file as `simpleseg batch`
    reads it.

    Raises BatchError for what cannot be asked, OSError, and ModuleNotFoundError without training.
    """
    if data in DEMO_SETS:
        return _drawn(data, limit, pictures)
    if data == PACKAGED:
        return _with_truth(packaged_folder(), pictures)[:limit]
    path = Path(data)
    if not path.exists():
        known = ", ".join((*DEMO_SETS, PACKAGED))
        raise BatchError(f"no data named {data!r}: use {known}, a folder or a JSONL file")
    if not phrases and (path / _SAMPLES).is_file():
        return _with_truth(path, pictures)[:limit]
    entries = list(read_source(path, phrases, None).entries())[:limit]
    return [_of_entry(entry, number, pictures) for number, entry in enumerate(entries)]


def packaged_folder() -> Path:
    """The few scenes that come along: in the wheel beside this file, in a checkout the examples."""
    installed = Path(__file__).parent / "scenes"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "examples/images"


def _drawn(data: str, limit: int, pictures: Pictures) -> list[Question]:
    from simpleseg_training.cases import load_cases

    cases = load_cases(data, "test", limit, _DEMO_SIZE_PX)
    return [
        Question(
            f"{data}-{number}",
            _sent(Image.fromarray(case.image_hw3), number, pictures),
            {"prompts": [case.phrase]},
            (mask_to_rle(case.mask_hw),),
        )
        for number, case in enumerate(cases)
    ]


def _with_truth(folder: Path, pictures: Pictures) -> list[Question]:
    """A folder with a ``samples.json`` of {image, phrase, truth_rle}."""
    samples: list[dict[str, Any]] = json.loads((folder / _SAMPLES).read_text())
    return [
        Question(
            sample["image"],
            _file(folder / sample["image"], number, pictures),
            {"prompts": [sample["phrase"]]},
            (Rle.from_coco(sample["truth_rle"]),),
        )
        for number, sample in enumerate(samples)
    ]


def _of_entry(entry: Entry, number: int, pictures: Pictures) -> Question:
    fields = {name: value for name, value in entry.fields.items() if name != "image"}
    given: Any = entry.fields.get("image")
    image: dict[str, Any] = {"base64": given}
    if entry.path is not None:
        image = _file(entry.path, number, pictures)
    elif isinstance(given, dict):
        image = cast(dict[str, Any], given)
    return Question(entry.name, image, fields)


def _file(path: Path | Member | Cell, number: int, pictures: Pictures) -> dict[str, str]:
    content = path.read_bytes()
    if not pictures.sizes:
        return {"base64": base64.b64encode(content).decode("ascii")}
    with Image.open(io.BytesIO(content)) as picture:
        return _sent(ImageOps.exif_transpose(picture), number, pictures)


def _sent(picture: Image.Image, number: int, pictures: Pictures) -> dict[str, str]:
    if pictures.sizes:
        size = pictures.sizes[number % len(pictures.sizes)]
        picture = picture.resize((size.width, size.height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, pictures.format.upper())
    return {"base64": base64.b64encode(buffer.getvalue()).decode("ascii")}


class Deck:
    """The endless order in which questions are asked.

    Without ``reuse`` all come in shuffled rounds. With it, that share of the draws is about one of
    the images drawn lately, and the rest about the image whose turn is next; ``reuse_share`` tells
    what came of it, since images run out and come again.
    """

    def __init__(self, questions: Sequence[Question], reuse: float | None, seed: int) -> None:
        if not questions:
            raise ValueError("there is nothing to ask")
        self._random = Random(seed)
        self._reuse = reuse
        self._by_image: dict[str, list[Question]] = {}
        for question in questions:
            self._by_image.setdefault(question.image_name, []).append(question)
        self._rounds = _rounds(list(questions), self._random)
        self._images = _rounds(list(self._by_image), self._random)
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._seen: set[str] = set()
        self.drawn = self._again = 0

    @property
    def reuse_share(self) -> float:
        """The share of draws whose image was drawn before."""
        return self._again / self.drawn if self.drawn else 0.0

    def draw(self) -> Question:
        question = self._pick()
        self.drawn += 1
        self._again += question.image_name in self._seen
        self._seen.add(question.image_name)
        return question

    def _pick(self) -> Question:
        if self._reuse is None:
            return next(self._rounds)
        if self._recent and self._random.random() < self._reuse:
            name = self._random.choice(list(self._recent))
        else:
            name = next(self._images)
        self._recent[name] = None
        self._recent.move_to_end(name)
        if len(self._recent) > _RECENT_IMAGES:
            self._recent.popitem(last=False)
        return self._random.choice(self._by_image[name])


def _rounds(items: list[T], random: Random) -> Iterator[T]:
    while True:
        random.shuffle(items)
        yield from items
