"""Label Studio: the ``result`` list of a prediction or an annotation."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from simpleseg.formats.rings import PARTS_PER_SIDE, XYList, polygons_norm, to_unit, without_hole
from simpleseg_polygon.geometry import ImageSize, Region

_PARTS_PER_PERCENT = PARTS_PER_SIDE // 100


class PolygonValue(TypedDict):
    """A closed outline, [x, y] in percent of the image's width and height."""

    points: XYList
    closed: bool
    polygonlabels: list[str]


class LabelStudioResult(TypedDict):
    """One polygon, for a ``<PolygonLabels>`` tag."""

    id: str
    type: Literal["polygonlabels"]
    from_name: str
    to_name: str
    original_width: int
    original_height: int
    image_rotation: int
    value: PolygonValue
    score: NotRequired[float]


def label_studio_results(
    region: Region,
    size: ImageSize,
    label: str,
    *,
    score: float | None = None,
    from_name: str = "label",
    to_name: str = "image",
    id_prefix: str = "simpleseg",
) -> list[LabelStudioResult]:
    """A polygon for each part of the region, points in percent with four decimals.

    ``from_name`` and ``to_name`` are the names of the ``<PolygonLabels>`` and the ``<Image>`` tag
    in the project's labelling interface. Polygons do not overlap or cross themselves; a hole is
    joined to its outline by a bridge without width. Ids are ``id_prefix`` and the polygon's number,
    and must differ within a task.

    Raises TooComplexError where the outlines cross too often.
    """
    results: list[LabelStudioResult] = []
    for k, polygon in enumerate(polygons_norm(region)):
        points = to_unit(without_hole(polygon), _PARTS_PER_PERCENT)
        result: LabelStudioResult = {
            "id": f"{id_prefix}-{k}",
            "type": "polygonlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": size.width,
            "original_height": size.height,
            "image_rotation": 0,
            "value": {"points": points, "closed": True, "polygonlabels": [label]},
        }
        if score is not None:
            result["score"] = score
        results.append(result)
    return results
