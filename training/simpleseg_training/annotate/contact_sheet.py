"""Annotated pictures on one page: it loads nothing, and text from models is only ever text."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from simpleseg_polygon.codec import parse_region
from simpleseg_training.annotate.describe import data_url
from simpleseg_training.annotate.picture import Picture

_MOST = 1000
"""Pictures on a page, which a browser has to hold as a whole."""
_THUMB_PX = 420
_COLOURS = ("#ff3db8", "#19c37d", "#ffb000", "#2f8cff", "#b15cff", "#ff5a36")
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; background: #fafafa; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 20px; }
figure { margin: 0; background: #fff; border: 1px solid #ddd; padding: 10px; }
.picture { position: relative; }
.picture img { display: block; width: 100%; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
polygon { fill-opacity: 0.25; stroke-width: 2; vector-effect: non-scaling-stroke; }
ul { list-style: none; padding: 0; margin: 8px 0 0; }
b { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.5em; }
figcaption, small { color: #555; overflow-wrap: anywhere; }
table { margin-bottom: 20px; }
td { padding: 0 1em 0 0; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_contact_sheet(
    entries: Sequence[tuple[Picture, Mapping[str, Any]]], counts: Mapping[str, Any], out: Path
) -> None:
    """``entries`` are pictures with the journal's lines; the first of them are shown."""
    figures = "\n".join(_figure(picture, entry) for picture, entry in entries[:_MOST])
    shown = f"<p>The first {_MOST} of {len(entries)}.</p>" if len(entries) > _MOST else ""
    out.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>Annotated pictures</title><style>{_STYLE}</style></head><body>"
        f"<h1>Annotated pictures</h1>{_table(counts)}{shown}"
        f"<main>\n{figures}\n</main></body></html>\n",
        encoding="utf-8",
    )


def _table(counts: Mapping[str, Any]) -> str:
    flat = {**counts, **{f"removed: {name}": n for name, n in counts["removed"].items()}}
    del flat["removed"]
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(json.dumps(value))}</td></tr>"
        for name, value in flat.items()
    )
    return f"<table>{rows}</table>"


def _figure(picture: Picture, entry: Mapping[str, Any]) -> str:
    name = picture.name
    with Image.open(BytesIO(picture.file.read_bytes())) as image:
        shown = ImageOps.exif_transpose(image).convert("RGB")
        shown.thumbnail((_THUMB_PX, _THUMB_PX))
    objects = [(found, _COLOURS[i % len(_COLOURS)]) for i, found in enumerate(entry["objects"])]
    outlines = "".join(_outline(found["region"], colour) for found, colour in objects)
    lines = "".join(_line(found, colour) for found, colour in objects)
    return (
        f'<figure><div class="picture"><img alt="{escape(name)}" src="{data_url(shown)}">'
        f'<svg viewBox="0 0 1 1" preserveAspectRatio="none">{outlines}</svg></div>'
        f"<ul>{lines or '<li><small>nothing kept</small></li>'}</ul>"
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _outline(region: str, colour: str) -> str:
    rings = (
        " ".join(f"{point.x:g},{point.y:g}" for point in ring)
        for ring in parse_region(region).value.parts
    )
    return "".join(f'<polygon points="{r}" fill="{colour}" stroke="{colour}"/>' for r in rings)


def _line(found: Mapping[str, Any], colour: str) -> str:
    about = f"{found['label']} {found['score']:.2f}"
    return (
        f'<li><b style="background: {colour}"></b>{escape(found["phrase"])} '
        f"<small>{escape(about)}</small></li>"
    )
