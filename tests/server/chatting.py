"""What the tests of the chat share: conversations about an image, and how streams are read."""

import json
from typing import Any

from simpleseg.chat_answer_schema import ChatChunk, ChatCompletion

PATH = "/v1/chat/completions"
QUESTION = "Output the polygon coordinates of the left dog in the image."


def image_part(image64: str, **more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{image64}"
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(image64: str, text: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": [image_part(image64), {"type": "text", "text": text}]}


def complete(client: Any, *messages: dict[str, Any], **fields: Any) -> Any:
    response = client.post(PATH, json={"messages": list(messages), **fields})
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def chunks(client: Any, *messages: dict[str, Any], **fields: Any) -> list[Any]:
    response = client.post(PATH, json={"messages": list(messages), "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return read_chunks(response.text)


def read_chunks(text: str) -> list[Any]:
    """The chunks of a complete stream, which ends with the end mark."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    data = [json.loads(block.removeprefix("data: ")) for block in blocks]
    for one in data:
        if "error" not in one:
            ChatChunk.model_validate(one)
    return data


def joined(data: list[Any], index: int = 0) -> str:
    """The content of one choice of a stream."""
    deltas = [c["delta"] for one in data for c in one["choices"] if c["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)


def last_of(data: list[Any], index: int = 0) -> Any:
    """The chunk of one choice that has its finish reason."""
    choices = [c for one in data for c in one["choices"] if c["index"] == index]
    assert [c for c in choices if c["finish_reason"]] == choices[-1:]
    return choices[-1]
