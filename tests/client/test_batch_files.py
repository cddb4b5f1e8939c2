"""The files of a batch: what is read, and what is left of an output that broke off."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpleseg.batch import BatchError
from simpleseg.batch.coco import check_for_coco
from simpleseg.batch.journal import Journal, drop_failed
from simpleseg.batch.source import read_source

IMAGE = {"base64": "aGk="}


def _line(custom_id: str, status: int = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": {"text": "ä\u2028"}}
    line = {"id": "x", "custom_id": custom_id, "response": response, "error": None}
    return {**line, "request_digest": "d"}


def _written(path: Path, *lines: dict[str, Any]) -> None:
    with Journal(path) as journal:
        for line in lines:
            journal.append(line)


def test_answers_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    _written(path, _line("a"), _line("b", 415))
    with Journal(path) as journal:
        assert {name: mark.failed for name, mark in journal.marks.items()} == {
            "a": False,
            "b": True,
        }
        assert journal.line("b") == _line("b", 415)
        journal.append(_line("c"))
        assert journal.line("c") == _line("c")


def test_wherever_a_line_is_cut_only_that_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    _written(path, _line("a"), _line("b"))
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        _written(path, _line("c"))
        names = [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]
        assert names == (["a", "b", "c"] if end >= len(whole) - 1 else ["a", "c"])


@pytest.mark.parametrize("damage", [b"{}\n", b"not JSON\n", b"[1]\n", b'{"custom_id": "a"}\n'])
def test_what_is_not_an_output_is_not_touched(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    _written(path, _line("a"))
    path.write_bytes(content := path.read_bytes() + damage + b'{"torn')
    with pytest.raises(BatchError, match=r"out.jsonl:2 is not a line"):
        Journal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("field", ["custom_id", "request_digest"])
@pytest.mark.parametrize("value", [5, None, ["a"], {"a": 1}, True])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_field_of_another_type_is_named_and_nothing_lost(
    field: str, value: Any, end: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    _written(path, _line("a"))
    foreign = json.dumps({**_line("b"), field: value}).encode() + end
    path.write_bytes(content := path.read_bytes() + foreign)
    with pytest.raises(BatchError, match=rf"out\.jsonl:2 .*{field} must be a text"):
        Journal(path)
    assert path.read_bytes() == content


def test_errors_are_dropped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    _written(path, _line("a"), _line("b", 503), _line("c"))
    drop_failed(path)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [_line("a"), _line("c")]
    assert list(tmp_path.iterdir()) == [path]


def _source(tmp_path: Path, *lines: Any, phrases: tuple[str, ...] = ()) -> Any:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return read_source(file, phrases, 64)


def test_lines_of_both_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"hi")
    body = {"image": "aGk=", "prompt": "dog", "max_points": 9}
    source = _source(
        tmp_path,
        {"image": "a.png", "prompt": "dog"},
        "",
        {"image": "https://x.test/a.png", "prompts": ["dog", {"point": [0.5, 0.5]}]},
        {"image": "a.png"},
        {"custom_id": "k", "method": "POST", "url": "/segment", "body": body},
        phrases=("cat",),
    )
    entries = list(source.entries())
    sent = [json.loads(entry.body()) for entry in entries]
    assert sent[0] == {"image": IMAGE, "prompt": "dog", "max_points": 64}
    assert sent[1]["image"] == {"url": "https://x.test/a.png"}
    assert sent[2]["prompts"] == ["cat"]
    assert sent[3] == body
    assert [entry.name for entry in entries] == ["a.png", "https://x.test/a.png", "a.png", "k"]
    assert {entry.custom_id: entry.digest for entry in entries} == source.digests
    assert len(source.digests) == 4


def test_a_name_of_its_own_follows_from_the_question(tmp_path: Path) -> None:
    line = {"image": "a.png", "prompt": "dog"}
    (first,) = _source(tmp_path, line).digests
    assert set(_source(tmp_path, {"image": "a.png", "prompt": "cat"}, line).digests) > {first}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "in.jsonl:1: not JSON"),
        (["[]"], "in.jsonl:1: not an object"),
        ([{"image": "a.png"}], "in.jsonl:1: give prompt or prompts"),
        ([{"prompt": "a"}], "in.jsonl:1: image is missing"),
        ([{"image": "a", "prompt": "a"}, {"image": "a", "promt": "a"}], "in.jsonl:2: promt"),
        ([{"image": IMAGE, "prompt": "a", "stream": True}], "in.jsonl:1: stream"),
        ([{"custom_id": 3, "image": IMAGE, "prompt": "a"}], "custom_id must be a text"),
        ([{"custom_id": "a", "body": 3}], "body is not an object"),
        ([{"custom_id": "a", "url": "/v1/models", "body": {}}], "only POST /v1/segment is asked"),
        ([{"custom_id": "a", "body": {}, "mode": 1}], "unknown key 'mode'"),
        ([{"custom_id": "a", "image": IMAGE, "prompt": "a"}] * 2, "'a' is there twice"),
        ([], "there is nothing to do"),
    ],
)
def test_a_line_at_fault_is_named_before_anything_is_asked(
    lines: list[Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BatchError, match=words):
        _source(tmp_path, *lines)


def test_a_folder_needs_a_phrase(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="say what to find"):
        read_source(tmp_path, (), None)


@pytest.mark.parametrize(
    ("fields", "words"), [({"task": "box"}, "regions alone"), ({"return": ["rle"]}, "polygons")]
)
def test_a_data_set_needs_polygons(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = _source(tmp_path, {"image": IMAGE, "prompt": "a", **fields})
    with pytest.raises(BatchError, match=words):
        check_for_coco(source)
