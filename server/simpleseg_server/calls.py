"""One segmentation request as it came in: fields checked, texts cleaned, the image still a file."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from simpleseg.schema import (
    MAX_SEED,
    ImageInput,
    PromptItem,
    ResultWarning,
    SegmentRequest,
    UploadRequest,
)
from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_polygon.prompts import instruction, phrase
from simpleseg_server.answers import (
    Frame,
    clean_text,
    read_box,
    read_point,
    read_region,
    result_warnings,
)
from simpleseg_server.body import FilePart, read_body
from simpleseg_server.config import Settings
from simpleseg_server.data_urls import decode_base64, decode_data_url, is_data_url
from simpleseg_server.engines.base import ClientGrammar, Turn
from simpleseg_server.errors import ApiError, from_validation_error, parameter_path


@dataclass(frozen=True)
class Wording:
    """What the engine is asked, to the letter, for every item of a call; with ``constrained``
    under the grammar of the call's task, else under the client's, if there is one."""

    instruction: str
    history: tuple[Turn, ...]
    constrained: bool
    client_grammar: ClientGrammar | None = None


@dataclass(frozen=True)
class Named:
    """What of an image a prompt means: by text, and by places in the whole image."""

    text: str | None = None
    point: Point | None = None
    box: Box | None = None
    region: Region | None = None

    def phrase(self, view: Box) -> str:
        """The noun phrase for a view of the image, in the view's own coordinates."""
        box = None if self.box is None else _corners(self.box, view)
        return phrase(
            text=self.text,
            point=None if self.point is None else view.within(self.point),
            box=box,
            region=None if self.region is None else self.region.within(view),
        )


def _corners(box: Box, view: Box) -> Box:
    return Box(*view.within(Point(box.x0, box.y0)), *view.within(Point(box.x1, box.y1)))


@dataclass(frozen=True)
class Call:
    """A request that has passed the schema, with its image file as bytes.

    ``item_params`` and ``image_param`` are the fields the prompts and the image came from;
    ``declared_type`` is the media type sent with the image. ``image_id`` names a kept image and
    ``image_url`` one to fetch, which then stand for the bytes; ``image_authorization`` is what the
    operator lets that URL's server know. ``wording`` is set where the client
    worded the question itself; then the items are answers to one question.
    """

    request: SegmentRequest
    items: tuple[PromptItem, ...]
    item_params: tuple[str, ...]
    image_bytes: bytes
    image_param: str
    declared_type: str | None
    wording: Wording | None = None
    image_id: str | None = None
    image_url: str | None = None
    image_authorization: str | None = None

    def worded(self, named: Named, view: Box) -> Wording:
        """What the engine is asked about an item, of which it sees a view of the image."""
        if self.wording is not None:
            return self.wording
        task = self.request.task
        return Wording(instruction(task, named.phrase(view)), (), task != "text")

    def seed(self, index: int, sample: int) -> int | None:
        """The seed of an answer: another one for each answer to the same question."""
        seed = self.request.seed
        if seed is None:
            return None
        return (seed + (sample if self.wording is None else index)) % (MAX_SEED + 1)


def read_call(data: bytes, content_type: str, settings: Settings) -> Call:
    """A request body as a Call. Raises ApiError with the field at fault."""
    body = read_body(data, content_type)
    return call_of(body.fields, settings, body.file)


def call_of(fields: dict[str, Any], settings: Settings, file: FilePart | None = None) -> Call:
    """A request's fields, and the file of a form, as a Call. Raises ApiError."""
    prompts = fields.get("prompts")
    if isinstance(prompts, list) and len(prompts) > settings.max_prompts:
        # Before they are looked at: 100,000 of them would take seconds.
        message = f"at most {settings.max_prompts} prompts in a request"
        raise ApiError(422, "too_many_prompts", message, param="prompts")
    try:
        request = SegmentRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation_error(error) from None
    items = request.items()
    params = (
        ("prompt",)
        if request.prompts is None
        else tuple(f"prompts[{index}]" for index in range(len(items)))
    )
    checked = tuple(
        _checked_item(item, param, settings) for item, param in zip(items, params, strict=True)
    )
    source = image_source(request.image, file, settings)
    return Call(
        request,
        checked,
        params,
        source.data,
        source.param,
        source.declared_type,
        image_id=source.id,
        image_url=source.url,
    )


def fields_of_batch(fields: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """The fields of each request of a batch. Raises ApiError for what is no batch."""
    unknown = next((name for name in fields if name != "requests"), None)
    if unknown is not None:
        param = parameter_path((unknown,)) or None
        raise ApiError(400, "unknown_parameter", "unknown parameter", param=param)
    items = fields.get("requests")
    if not isinstance(items, list) or not items:
        message = "must be a list of at least one request"
        raise ApiError(400, "type_invalid", message, param="requests")
    if len(items) > settings.max_batch_requests:
        message = f"at most {settings.max_batch_requests} requests in a batch"
        raise ApiError(422, "too_many_requests", message, param="requests")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            param = f"requests[{index}]"
            raise ApiError(400, "type_invalid", "must be an object", param=param)
    return items


@dataclass(frozen=True)
class ImageSource:
    """Where an image comes from: the bytes of its file, the ``id`` of one that is kept, or the
    ``url`` of one to fetch.

    ``param`` is the field it was given in, ``declared_type`` the media type declared with it.
    """

    data: bytes
    param: str
    declared_type: str | None = None
    id: str | None = None
    url: str | None = None


def _checked_item(item: PromptItem, param: str, settings: Settings) -> PromptItem:
    """The prompt with its text cleaned.

    Raises ApiError 422 prompt_empty, prompt_too_long or too_many_points.
    """
    if sum(map(len, item.polygons or ())) > settings.max_points:
        message = f"the polygons of a prompt may have at most {settings.max_points} points"
        raise ApiError(422, "too_many_points", message, param=f"{param}.polygons")
    if item.text is None:
        return item
    if len(item.text.encode()) > settings.max_prompt_bytes:
        message = f"a prompt may have at most {settings.max_prompt_bytes} bytes"
        raise ApiError(422, "prompt_too_long", message, param=param)
    text = clean_text(item.text)
    if not text:
        raise ApiError(422, "prompt_empty", "the prompt is empty", param=param)
    return item.model_copy(update={"text": text})


def image_source(
    image: str | ImageInput | None, file: FilePart | None, settings: Settings
) -> ImageSource:
    """The image of a request. Raises ApiError."""
    if file is not None:
        return ImageSource(file.data, "image", file.declared_type)
    if image is None:
        raise ApiError(400, "image_missing", "give an image", param="image")
    if isinstance(image, str):
        if ":" in image[:16]:  # not in the alphabet of base64, and in every URL
            return url_source(image, settings, "image")
        return ImageSource(decode_base64(image, settings, "image"), "image")
    if image.id is not None:
        return ImageSource(b"", "image.id", id=image.id)
    if image.base64 is not None:
        param = "image.base64"
        return ImageSource(decode_base64(image.base64, settings, param), param)
    return url_source(image.url or "", settings, "image.url")


def url_source(url: str, settings: Settings, param: str) -> ImageSource:
    """The bytes of a data URL, or another URL as it is where the operator lets images be fetched.
    Raises ApiError."""
    if settings.image_urls != "off" and not is_data_url(url):
        return ImageSource(b"", param, url=url)
    data, declared = decode_data_url(url, settings, param)
    return ImageSource(data, param, declared)


def read_upload(data: bytes, content_type: str, settings: Settings) -> ImageSource:
    """The image of an upload's body. Raises ApiError with the field at fault."""
    body = read_body(data, content_type)
    if body.file is not None:
        unknown = next(iter(body.fields), None)
        if unknown is not None:
            raise ApiError(400, "unknown_parameter", "unknown parameter", param=unknown)
        return ImageSource(body.file.data, "image", body.file.declared_type)
    try:
        request = UploadRequest.model_validate(body.fields)
    except ValidationError as error:
        raise from_validation_error(error) from None
    if isinstance(request.image, ImageInput) and request.image.id is not None:
        message = "the image is kept already"
        raise ApiError(422, "image_id_not_applicable", message, param="image.id")
    return image_source(request.image, None, settings)


def named_by(call: Call, frame: Frame) -> tuple[list[Named], list[ResultWarning]]:
    """What each prompt means, and warnings about boxes that were changed."""
    named: list[Named] = []
    warnings: list[ResultWarning] = []
    for index, (item, param) in enumerate(zip(call.items, call.item_params, strict=True)):
        notes: list[ParseWarning] = []
        point = None if item.point is None else read_point(item.point, frame, f"{param}.point")
        box = None
        if item.box is not None:
            box, notes = read_box(item.box, frame, f"{param}.box")
        region = None
        if item.polygons is not None:
            region = read_region(item.polygons, frame, f"{param}.polygons")
        named.append(Named(item.text, point, box, region))
        warnings += result_warnings(notes, index)
    return named, warnings
