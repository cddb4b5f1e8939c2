"""An evaluation as one page: its numbers, and the best, median and worst answers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from simpleseg_training.annotate.describe import data_url
from simpleseg_training.evaluate import Judged
from simpleseg_training.pictures import extremes, judged_tile

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 24px; color: #222; }
td { padding: 0 2em 0 0; } td + td { text-align: right; font-variant-numeric: tabular-nums; }
img { margin: 0 6px 6px 0; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    title: str, metrics: Mapping[str, float], judged: Sequence[Judged], out: Path, count: int = 8
) -> None:
    """One HTML file that loads nothing. Pictures show the answer as a magenta outline over the true
    area, which is bright, with phrase and IoU below."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in metrics.items()
    )
    sections = "".join(
        f"<h2>{name}</h2>{''.join(map(_picture, chosen))}"
        for name, chosen in extremes(judged, count).items()
    )
    out.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><table>{rows}</table>{sections}</body></html>\n",
        encoding="utf-8",
    )


def _picture(one: Judged) -> str:
    alt = f"{one.case.phrase}: IoU {one.iou:.2f}"
    return f'<img alt="{escape(alt)}" src="{data_url(judged_tile(one))}">'
