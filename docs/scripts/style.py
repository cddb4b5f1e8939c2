"""What the figures have in common: readable on a light and on a dark page."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, GREEN, RED, GREY, INK = "#1d78d6", "#16945a", "#c8323f", "#8a8f98", "#20242b"
PAPER = "#ffffff"
MONO = "DejaVu Sans Mono"
RC: dict[str, Any] = {
    "svg.hashsalt": "simpleseg",  # the same picture is the same bytes
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def save(figure: Figure, path: Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, facecolor=PAPER, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
