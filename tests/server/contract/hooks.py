"""What schemathesis cannot know of our document: how images look, that a conversation has one, and
what the events of a stream mean."""

import base64
import io
import json
import math
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from schemathesis.generation import GenerationMode
from schemathesis.transport.serialization import Binary

from simpleseg.chat_answer_schema import ChatChunk
from simpleseg.schema import ErrorResponse, SegmentRequest, StreamEvent

CHAT = "/v1/chat/completions"
QUESTIONS = (
    "Output the polygon coordinates of the dog in the image.",
    "Output the bounding box coordinates of the dog in the image.",
    "Output the point coordinates of the dog in the image.",
    "Describe the dog in the image.",
    "Where is the dog?",
)


def _file(kind: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


FILES = [
    _file(kind, size) for kind in ("PNG", "JPEG", "WEBP", "GIF") for size in ((1, 1), (40, 30))
]
_texts = st.sampled_from([base64.b64encode(data).decode() for data in FILES])
_urls = _texts.map(lambda text: f"data:image/png;base64,{text}")
_prompts = st.lists(
    st.sampled_from(["dog", {"text": "dog", "point": [0.5, 0.5]}, {"box": [0, 0, 1, 0.5]}]),
    min_size=1,
    max_size=3,
)
schemathesis.openapi.format("byte", _texts)
schemathesis.openapi.format("uri", _urls)
schemathesis.openapi.format("binary", st.sampled_from(FILES))
schemathesis.openapi.format("json", _prompts.map(json.dumps))


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """What JSON Schema cannot say of a valid request: exactly one part of a conversation is an
    image, the last message is the user's, coordinates have the unit that ``coordinates`` says, and
    a deadline can be met by a busy machine.
    """
    is_valid = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
    if is_valid:
        case.body = _patient(case.body)
    if is_valid and case.media_type == "application/json" and isinstance(case.body, dict):
        if case.path == CHAT and "messages" in case.body:
            case.body = {**case.body, "messages": _conversation(case.body["messages"])}
        if case.path in ("/segment", "/v1/segment/batch"):
            case.body = _within(case.body)
    return case


def _patient(body: Any) -> Any:
    """The same with a second more for each deadline that is shorter."""
    if not isinstance(body, dict):
        return body
    found = dict(body)
    deadline = found.get("deadline_ms")
    if isinstance(deadline, int | float) and 0 < deadline < 1000:
        found["deadline_ms"] = deadline + 1000
    if isinstance(found.get("requests"), list):
        found["requests"] = [_patient(one) for one in found["requests"]]
    return found


def _within(value: Any) -> Any:
    """The same with coordinates that are in every image; some are left as they are."""
    if isinstance(value, dict):
        return {name: _within(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_within(one) for one in value]
    is_wild = isinstance(value, float) and not 0 <= value <= 1
    return abs(value) % 1 if is_wild and math.frexp(value)[1] % 8 else value


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """In a form everything is text: what has the wrong type here may be right on the wire, and then
    it is to be accepted. A list is a part for each item, so an empty one is not there at all."""
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    if not is_form or case.meta is None:
        return
    sent = {name: value for name, value in case.body.items() if value != []}
    is_image = case.path == "/v1/images" and sent.keys() == {"image"} and _is_file(sent["image"])
    if is_image or (case.path == "/segment" and _is_a_valid_form(sent)):
        case.meta.generation.mode = GenerationMode.POSITIVE


def _is_file(value: Any) -> bool:
    return isinstance(value, bytes | Binary)


def _is_a_valid_form(body: dict[str, Any]) -> bool:
    fields = {name: _read(name, value) for name, value in body.items() if name != "image"}
    try:
        SegmentRequest.model_validate(fields)
    except ValidationError:
        return False
    return _is_file(body.get("image"))


def _read(name: str, value: Any) -> Any:
    """A field as the server reads what schemathesis writes."""
    if name in ("prompt", "model", "task", "coordinates"):
        return value if isinstance(value, str) else json.dumps(value)
    if name in ("return", "include") or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _conversation(messages: Any) -> Any:
    """The messages without their images, and after them a question with one."""
    if not isinstance(messages, list):
        return messages
    texts = len(json.dumps(messages))
    image = {"type": "image_url", "image_url": {"url": _url(FILES[texts % len(FILES)])}}
    question = {"type": "text", "text": QUESTIONS[texts % len(QUESTIONS)]}
    return [*map(_without_images, messages), {"role": "user", "content": [image, question]}]


def _url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _without_images(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    parts = [p for p in content if not (isinstance(p, dict) and p.get("type") == "image_url")]
    return {**message, "content": parts or "no image"}


_EVENTS: TypeAdapter[StreamEvent] = TypeAdapter(StreamEvent)


@schemathesis.check
def streams_hold_what_is_documented(context: Any, response: Any, case: Any) -> None:
    """Every event is of the contract, deltas join to the final polygons, and the end is marked."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], "the stream has no end mark"
    events = [_data(block) for block in blocks[:-2] if not block.startswith(":")]
    if case.path == CHAT:
        for event in events:
            ChatChunk.model_validate(event)
        return
    if "error" in events[-1]:
        ErrorResponse.model_validate(events.pop())
    polygons: dict[int, list[Any]] = {}
    for event in map(_EVENTS.validate_python, events):
        if event.type == "segmentation.points.delta":
            parts = polygons.setdefault(event.result, [])
            parts += [[]] * (event.polygon == len(parts))
            parts[event.polygon] = parts[event.polygon] + event.points
        if event.type == "segmentation.completed":
            for result in event.response.results:
                shown = result.polygons or []
                assert not shown or polygons.get(result.index, []) == shown, "deltas do not join"


def _data(block: str) -> Any:
    return json.loads(block.splitlines()[-1].removeprefix("data: "))
