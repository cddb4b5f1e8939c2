"""Examples for the OpenAPI document: requests that a server answers, and requests that it refuses.

They run as they stand, on the demo model: a test sends each of them.
"""

from typing import Any

Examples = dict[str, dict[str, Any]]
Route = tuple[str, str]

IMAGE_BASE64 = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAQMAAACbhe5cAAAABlBMVEX6+vXIHh4ToOidAAAAHElEQVR4"
    "2mNgoB9gZGD4z8DAyMDABBMZHgx6AgBq0AEwpOrDoQAAAABJRU5ErkJggg=="
)
"""A red square on light ground, 64 x 48 pixels."""

_IMAGE = {"base64": IMAGE_BASE64}
_URL = f"data:image/png;base64,{IMAGE_BASE64}"
_SQUARE = [[[0.25, 0.25], [0.625, 0.25], [0.625, 0.75], [0.25, 0.75]]]


def _example(summary: str, **value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}


def _segment(summary: str, **fields: Any) -> dict[str, Any]:
    return _example(summary, image=_IMAGE, **fields)


def _chat(summary: str, text: str, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": _URL}}, {"type": "text", "text": text}]
    message = {"role": "user", "content": parts}
    return _example(summary, messages=[message], **fields)


_OUTLINE = "Output the polygon coordinates of the red square in the image."

REQUESTS: dict[Route, Examples] = {
    ("post", "/segment"): {
        "phrase": _segment("A phrase", prompt="the red square"),
        "several": _segment(
            "Several prompts, by a text, a point and a box",
            prompts=[
                "the red square",
                {"text": "the square", "point": [0.4, 0.5]},
                {"box": [0.2, 0.2, 0.7, 0.8]},
            ],
            **{"return": ["polygons", "bbox", "rle"]},
        ),
        "formats": _segment(
            "Pixels, and other tools' formats",
            prompt="the red square",
            coordinates="pixel",
            simplify=1.5,
            **{"return": ["polygons", "geojson", "coco", "svg"]},
        ),
        "box": _segment("The box of what a text names", prompt="the red square", task="box"),
        "name": _segment("A text for a region", prompt={"polygons": _SQUARE}, task="text"),
        "stream": _segment("Points as they are written", prompt="the red square", stream=True),
        "careful": _segment(
            "A second look, with what the score is made of",
            prompt="the red square",
            refine=True,
            include=["timings", "raw_text", "scores"],
        ),
    },
    ("post", "/v1/segment/batch"): {
        "two": _example(
            "Two requests",
            requests=[
                {"image": _IMAGE, "prompt": "the red square"},
                {"image": _IMAGE, "prompt": "the blue circle", "return": ["rle"]},
            ],
        )
    },
    ("post", "/v1/images"): {
        "base64": _example("A file in base64", image=_IMAGE),
        "url": _example("A data URL", image={"url": _URL}),
    },
    ("post", "/v1/chat/completions"): {
        "instruction": _chat("An instruction of the training", _OUTLINE),
        "stream": _chat(
            "A stream that ends with the usage",
            _OUTLINE,
            stream=True,
            stream_options={"include_usage": True},
        ),
        "polygons": _chat(
            "Polygons, whatever the text",
            "the red square",
            response_format={"type": "simpleseg_polygons", "max_points": 16},
        ),
    },
    ("post", "/tokenize"): {"prompt": _example("A text", prompt="the red square")},
}
"""By route, requests that are answered with 200."""


def _refusal(
    code: str, message: str, param: str | None, request: Any = None, kind: str | None = None
) -> dict[str, Any]:
    error = {
        "code": code,
        "message": message,
        "type": kind or "invalid_request_error",
        "param": param,
        "request_id": "req_5b1f3c9a7e20",
    }
    return {"summary": code, "value": {"error": error}, "x-request": request}


_UNKNOWN = {"image": _IMAGE, "promt": "the red square"}
_GUIDED_JSON = (
    "unknown parameter guided_json: its successor is structured_outputs.json, or response_format "
    "json_schema, where the operator enables client grammars"
)
_GUIDED = _chat("", _OUTLINE, guided_json={})["value"]
_NO_MODEL = "no such model is served"

REFUSALS: dict[tuple[str, str, str], Examples] = {
    ("post", "/segment", "400"): {
        "unknown": _refusal("unknown_parameter", "unknown parameter", "promt", _UNKNOWN),
        "no_image": _refusal("image_missing", "give an image", "image", {"prompt": "a square"}),
    },
    ("post", "/segment", "404"): {
        "model": _refusal(
            "model_not_found",
            _NO_MODEL,
            "model",
            {"image": _IMAGE, "prompt": "a square", "model": "another"},
        ),
        "kept": _refusal(
            "image_not_found",
            "no such image; it may have expired: upload it again",
            "image.id",
            {"image": {"id": "img_0"}, "prompt": "a square"},
        ),
    },
    ("post", "/segment", "415"): {
        "type": _refusal(
            "image_type_unsupported",
            "the image must be JPEG, PNG, WebP or GIF",
            "image.base64",
            {"image": {"base64": "aGVsbG8="}, "prompt": "a square"},
        )
    },
    ("post", "/segment", "422"): {
        "range": _refusal(
            "value_out_of_range",
            "must be at least 3",
            "max_points",
            {"image": _IMAGE, "prompt": "a square", "max_points": 2},
        ),
        "outside": _refusal(
            "point_outside_image",
            "the point is outside the image",
            "prompt.point",
            {"image": _IMAGE, "prompt": {"point": [3, 4]}},
        ),
    },
    ("post", "/v1/segment/batch", "400"): {
        "unknown": _refusal("unknown_parameter", "unknown parameter", "items", {"items": []})
    },
    ("post", "/v1/images", "422"): {
        "kept": _refusal(
            "image_id_not_applicable",
            "the image is kept already",
            "image.id",
            {"image": {"id": "img_0"}},
        )
    },
    ("post", "/v1/chat/completions", "400"): {
        "unknown": _refusal("unknown_parameter", _GUIDED_JSON, "guided_json", _GUIDED),
    },
    ("post", "/v1/chat/completions", "404"): {
        "model": _refusal(
            "model_not_found",
            _NO_MODEL,
            "model",
            _chat("", _OUTLINE, model="another")["value"],
        )
    },
}
"""By route and status, errors; ``x-request`` is the body that is answered so."""
