"""What a Label Studio project and a person's marks ask for: the interface's XML, and the regions
that come with a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field

from simpleseg_server.errors import ApiError
from simpleseg_server.routes.compat.asking import unsupported


class Loose(BaseModel):
    """A part of Label Studio's bodies; it sends more than a model needs to know."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Interface:
    """The names of the ``<PolygonLabels>`` and the ``<Image>`` tag, the task's field that has the
    image, and the labels."""

    from_name: str
    to_name: str
    image_field: str
    labels: tuple[str, ...]

    def label_for(self, text: str | None) -> str:
        """The label that a phrase means: its own words, or some of them, or the first.

        >>> Interface("label", "image", "image", ("cat", "dog")).label_for("the left Dog")
        'dog'
        """
        words = [] if text is None else text.casefold().split()
        fitting = [label for label in self.labels if _is_within(label.casefold().split(), words)]
        return max(fitting, key=len, default=self.labels[0])


def _is_within(few: list[str], many: list[str]) -> bool:
    width = len(few)
    return any(many[k : k + width] == few for k in range(len(many) - width + 1))


def read_interface(xml: str) -> Interface:
    """Raises ApiError 422 label_config_unusable where nothing can be put in or out."""
    tree = _parsed(xml)
    images = {tag.get("name"): tag.get("value", "") for tag in tree.iter("Image")}
    for tag in tree.iter("PolygonLabels"):
        name, image = tag.get("name"), tag.get("toName")
        labels = tuple(filter(None, (label.get("value") for label in tag.iter("Label"))))
        if name and image in images and images[image].startswith("$") and labels:
            return Interface(name, str(image), images[image][1:], labels)
    raise _unusable("the labelling interface needs an <Image> and <PolygonLabels> for it")


def _parsed(xml: str) -> ElementTree.Element:
    """Without a document type there are no entities, which can make much of little."""
    if "<!DOCTYPE" in xml:
        raise _unusable("the labelling interface has a document type")
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        raise _unusable("the labelling interface is no XML") from None


def _unusable(message: str) -> ApiError:
    return ApiError(422, "label_config_unusable", message, param="label_config")


class RegionValue(Loose):
    """Of a text area, a key point or a rectangle, these in percent of the image."""

    text: str | list[str] = []
    x: float | None = None
    y: float | None = None
    width: float = 0.0
    height: float = 0.0
    rotation: float = 0.0
    keypointlabels: list[str] = []
    rectanglelabels: list[str] = []


class MarkedRegion(Loose):
    type: str = ""
    value: RegionValue = RegionValue()
    is_positive: bool | int | None = None


class Context(Loose):
    """What a person did on the image, for smart tools."""

    result: list[MarkedRegion] = Field(default=[])


@dataclass(frozen=True)
class Wish:
    """A prompt of ``POST /segment``, and the label of what is found."""

    prompt: dict[str, Any]
    label: str


def wishes(interface: Interface, context: Context | None) -> list[Wish]:
    """What is asked for: the marked places, else the phrases, else everything that has a label.

    Raises ApiError for marks that are not served.
    """
    marks = context.result if context else []
    phrases = [text for mark in marks if mark.type == "textarea" for text in _texts(mark.value)]
    places = [mark for mark in marks if mark.type in _PLACES and mark.value.x is not None]
    if places:
        text = phrases[0] if len(phrases) == 1 else None
        return [_wish(mark, text, interface) for mark in places]
    if phrases:
        return [Wish({"text": text}, interface.label_for(text)) for text in phrases]
    return [Wish({"text": label}, label) for label in interface.labels]


_PLACES = ("keypoint", "keypointlabels", "rectangle", "rectanglelabels")


def _texts(value: RegionValue) -> Sequence[str]:
    texts = [value.text] if isinstance(value.text, str) else value.text
    return [text for text in texts if text.strip()]


def _wish(mark: MarkedRegion, text: str | None, interface: Interface) -> Wish:
    value = mark.value
    if mark.is_positive is not None and not mark.is_positive:
        raise unsupported("only places on the object are served", "params.context")
    if value.rotation:
        raise unsupported("turned rectangles are not served", "params.context")
    x, y = (value.x or 0.0) / 100, (value.y or 0.0) / 100
    place: dict[str, Any] = {"point": [x, y]}
    if mark.type.startswith("rectangle"):
        place = {"box": [x, y, x + value.width / 100, y + value.height / 100]}
    own = [*value.keypointlabels, *value.rectanglelabels]
    label = own[0] if own and own[0] in interface.labels else interface.label_for(text)
    return Wish(place if text is None else place | {"text": text}, label)
