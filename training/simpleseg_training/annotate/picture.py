"""The photographs of a run, wherever their bytes are."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps, UnidentifiedImageError

from simpleseg_training.annotate.parts import Image
from simpleseg_training.records import ImageFile

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class Picture:
    """A photograph. ``name`` is unique in a run, and the same in the run that goes on."""

    name: str
    file: ImageFile


def pictures_in(folder: Path) -> list[Picture]:
    """Those below a folder, by their sorted paths from it. Raises ValueError for none."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
    if not names:
        raise ValueError(f"no pictures in {folder}")
    return [Picture(name, folder / name) for name in names]


def read(picture: Picture) -> tuple[bytes, Image] | None:
    """Its bytes, and the picture as it is displayed; None where it is none.

    Raises OSError where its place fails, which is no fault of the picture and may pass.
    """
    try:
        content = picture.file.read_bytes()
        with Pictures.open(BytesIO(content)) as opened:
            return content, np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (FileNotFoundError, PermissionError, ConnectionError, TimeoutError):
        raise
    except (OSError, SyntaxError, UnidentifiedImageError, Pictures.DecompressionBombError):
        return None
