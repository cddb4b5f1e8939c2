"""One segmentation request as it came in: fields checked, texts cleaned, the image still a file."""

from dataclasses import dataclass

from pydantic import ValidationError

from simpleseg.schema import MAX_SEED, ImageInput, PromptItem, ResultWarning, SegmentRequest
from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.prompts import phrase
from simpleseg_server.answers import Frame, clean_text, read_box, read_point, result_warnings
from simpleseg_server.body import Body, read_body
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Turn
from simpleseg_server.errors import ApiError, from_validation_error
from simpleseg_server.images import decode_base64, decode_data_url


@dataclass(frozen=True)
class Wording:
    """What the engine is asked, to the letter, for every item of a call; with ``constrained``
    under the grammar of the call's task."""

    instruction: str
    history: tuple[Turn, ...]
    constrained: bool


@dataclass(frozen=True)
class Call:
    """A request that has passed the schema, with its image file as bytes.

    ``item_params`` and ``image_param`` are the fields the prompts and the image came from;
    ``declared_type`` is the media type sent with the image. ``wording`` is set where the client
    worded the question itself; then the items are answers to one question.
    """

    request: SegmentRequest
    items: tuple[PromptItem, ...]
    item_params: tuple[str, ...]
    image_bytes: bytes
    image_param: str
    declared_type: str | None
    wording: Wording | None = None

    def seed(self, index: int, sample: int) -> int | None:
        """The seed of an answer: another one for each answer to the same question."""
        seed = self.request.seed
        if seed is None:
            return None
        return (seed + (sample if self.wording is None else index)) % (MAX_SEED + 1)


def read_call(data: bytes, content_type: str, settings: Settings) -> Call:
    """A request body as a Call. Raises ApiError with the field at fault."""
    body = read_body(data, content_type)
    try:
        request = SegmentRequest.model_validate(body.fields)
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
    image_bytes, image_param, declared = _image_bytes(request, body, settings)
    return Call(request, checked, params, image_bytes, image_param, declared)


def _checked_item(item: PromptItem, param: str, settings: Settings) -> PromptItem:
    """The prompt with its text cleaned. Raises ApiError 422 prompt_empty or prompt_too_long."""
    if item.text is None:
        return item
    if len(item.text.encode()) > settings.max_prompt_bytes:
        message = f"a prompt may have at most {settings.max_prompt_bytes} bytes"
        raise ApiError(422, "prompt_too_long", message, param=param)
    text = clean_text(item.text)
    if not text:
        raise ApiError(422, "prompt_empty", "the prompt is empty", param=param)
    return item.model_copy(update={"text": text})


def _image_bytes(
    request: SegmentRequest, body: Body, settings: Settings
) -> tuple[bytes, str, str | None]:
    """The image file, the field it came from, and the media type declared with it."""
    if body.file is not None:
        return body.file.data, "image", body.file.declared_type
    image = request.image
    if image is None:
        raise ApiError(400, "image_missing", "give an image", param="image")
    if isinstance(image, ImageInput):
        if image.base64 is not None:
            param = "image.base64"
            return decode_base64(image.base64, settings, param), param, None
        data, declared = decode_data_url(image.url or "", settings, "image.url")
        return data, "image.url", declared
    if ":" in image[:16]:  # not in the alphabet of base64, and in every URL
        data, declared = decode_data_url(image, settings, "image")
        return data, "image", declared
    return decode_base64(image, settings, "image"), "image", None


def phrases_of(call: Call, frame: Frame) -> tuple[list[str], list[ResultWarning]]:
    """The noun phrase of each prompt, and warnings about boxes that were changed."""
    phrases: list[str] = []
    warnings: list[ResultWarning] = []
    for index, (item, param) in enumerate(zip(call.items, call.item_params, strict=True)):
        notes: list[ParseWarning] = []
        point = None if item.point is None else read_point(item.point, frame, f"{param}.point")
        box = None
        if item.box is not None:
            box, notes = read_box(item.box, frame, f"{param}.box")
        phrases.append(phrase(text=item.text, point=point, box=box))
        warnings += result_warnings(notes, index)
    return phrases, warnings
