"""What a load asks and how answers are read, without a server."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simpleseg.batch import BatchError
from simpleseg.bench.questions import (
    Deck,
    Pictures,
    Question,
    load_questions,
    packaged_folder,
)
from simpleseg.bench.wire import (
    AnswerError,
    ChatStreamReader,
    PlainReader,
    SegmentStreamReader,
    Target,
    error_kind,
    read_chat,
    read_segment,
)
from simpleseg.errors import InvalidInputError
from simpleseg_polygon.geometry import ImageSize

TRIANGLE = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."
SEGMENT = {
    "results": [{"status": "ok", "polygons": [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]}],
    "usage": {"completion_tokens": 30},
    "timings_ms": {"first_token": 12.5},
}


def events(*sent: tuple[str | None, Any]) -> bytes:
    named = [("" if name is None else f"event: {name}\n", data) for name, data in sent]
    texts = [f"{name}data: {json.dumps(data)}\n\n" for name, data in named]
    return (": keep-alive\n\n" + "".join(texts) + "data: [DONE]\n\n").encode()


def chunk(text: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


CHAT_STREAM = events(
    *((None, chunk(TRIANGLE[at : at + 4])) for at in range(0, len(TRIANGLE), 4)),
    (None, chunk(None, "stop")),
    (None, {"choices": [], "usage": {"completion_tokens": 11}}),
)
SEGMENT_STREAM = events(
    ("segmentation.created", {}),
    ("segmentation.points.delta", {"points": [[0.1, 0.2]]}),
    ("segmentation.points.delta", {"points": [[0.5, 0.2]]}),
    ("segmentation.completed", {"response": SEGMENT}),
)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_streams_are_read_however_they_are_cut(size: int) -> None:
    chat, segment = ChatStreamReader(), SegmentStreamReader()
    for reader, stream in ((chat, CHAT_STREAM), (segment, SEGMENT_STREAM)):
        for at in range(0, len(stream), size):
            reader.feed(stream[at : at + size], now=1.0 + at)
    assert chat.answer() == read_chat(
        {
            "choices": [{"message": {"content": TRIANGLE}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 11},
        }
    )
    assert segment.answer() == read_segment(SEGMENT)
    assert segment.answer().server_first_token_s == 0.0125
    for marks in (chat.marks, segment.marks):
        assert marks.first_byte == 1.0
        assert marks.first_point is not None
    if size == 1:
        # The first point is whole with the third piece, "0.2]".
        assert chat.marks.first_point is not None
        cut = CHAT_STREAM[: int(chat.marks.first_point)].decode()
        assert cut.count("data:") == 3


@pytest.mark.parametrize(
    ("reader", "stream", "kind"),
    [
        (SegmentStreamReader(), SEGMENT_STREAM[:-30], "broke off"),
        (ChatStreamReader(), CHAT_STREAM[:-100], "broke off"),
        (SegmentStreamReader(), events(("error", {"error": {"code": "dead"}})), "stream dead"),
        (ChatStreamReader(), events((None, {"error": {"message": "x"}})), "stream error"),
        (PlainReader("segment"), b"<html>", "not JSON"),
        (PlainReader("segment"), b"[]", "not an object"),
        (PlainReader("segment"), b'{"results": [{}]}', "not an answer"),
        (PlainReader("chat"), b'{"choices": []}', "not an answer"),
    ],
)
def test_what_is_no_answer_has_a_kind(reader: Any, stream: bytes, kind: str) -> None:
    def read() -> None:
        reader.feed(stream, 0.0)
        reader.answer()

    with pytest.raises(AnswerError, match=kind):
        read()


def test_refusals_are_told_by_status_and_code() -> None:
    assert error_kind(503, b'{"error": {"code": "overloaded"}}') == "http 503 overloaded"
    assert error_kind(502, b"<html>") == "http 502"


def test_the_same_is_asked_of_both_endpoints() -> None:
    (question, *_) = load_questions("packaged")
    segment = json.loads(Target(stream=True, extra={"max_points": 9}).body(question))
    assert segment["prompts"] == ["the blob"]
    assert (segment["stream"], segment["max_points"]) == (True, 9)
    chat = json.loads(Target(endpoint="chat", model="m", extra={"seed": 1}).body(question))
    image, text = chat["messages"][0]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{question.image['base64']}"
    assert text["text"] == "Output the polygon coordinates of the blob in the image."
    assert (chat["model"], chat["seed"], chat["temperature"]) == ("m", 1, 0)
    assert "stream" not in chat


def test_a_chat_is_asked_about_one_region() -> None:
    (question, *_) = load_questions("packaged")
    for fields in ({"prompts": ["a", "b"]}, {"prompt": "a", "task": "box"}):
        asked = Question("a", question.image, fields)
        with pytest.raises(InvalidInputError, match="one region"):
            Target(endpoint="chat").body(asked)


def test_questions_come_from_folders_and_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(tmp_path / name)
    (tmp_path / "in.jsonl").write_text(
        '{"image": "a.png", "prompt": "the dog", "max_points": 8}\n'
        '{"image": "https://example.com/c.png", "prompt": "the cat"}\n'
    )
    folder = load_questions(str(tmp_path), phrases=["the dog"])
    assert [one.image_name for one in folder] == ["a.png", "b.png"]
    local, remote = load_questions(str(tmp_path / "in.jsonl"))
    assert local.fields["max_points"] == 8
    assert base64.b64decode(local.image["base64"]) == (tmp_path / "a.png").read_bytes()
    assert remote.image == {"url": "https://example.com/c.png"}
    with pytest.raises(BatchError, match="no data named"):
        load_questions("demo-none")


def test_images_are_scaled_by_turns() -> None:
    pictures = Pictures([ImageSize(48, 64), ImageSize(32, 32)], "jpeg")
    sizes = []
    for question in load_questions("packaged", limit=3, pictures=pictures):
        with Image.open(io.BytesIO(base64.b64decode(question.image["base64"]))) as picture:
            sizes.append((picture.format, picture.size))
        assert question.truths[0].size == ImageSize(512, 512)
    assert sizes == [("JPEG", (64, 48)), ("JPEG", (32, 32)), ("JPEG", (64, 48))]


def test_demo_scenes_are_drawn_with_their_truth() -> None:
    pytest.importorskip("simpleseg_training.cases")
    first, second = load_questions("demo-multi", limit=2)
    assert first.image != second.image
    assert first.truths[0].size == ImageSize(512, 512)


def test_the_packaged_scenes_are_there() -> None:
    asked = {question.image_name for question in load_questions("packaged")}
    assert asked == {path.name for path in packaged_folder().glob("*.png")}
    assert len(asked) > 3


def test_images_are_drawn_again_as_often_as_asked() -> None:
    questions = [Question(str(number), {}, {"prompts": ["a"]}) for number in range(2000)]
    for reuse in (0.0, 0.5, 0.9):
        deck = Deck(questions, reuse, seed=3)
        for _ in range(1000):
            deck.draw()
        assert deck.reuse_share == pytest.approx(reuse, abs=0.05)
    rounds = Deck(questions[:10], None, seed=3)
    assert len({rounds.draw().image_name for _ in range(10)}) == 10
    assert rounds.reuse_share == 0
    with pytest.raises(ValueError, match="nothing"):
        Deck([], None, 0)
