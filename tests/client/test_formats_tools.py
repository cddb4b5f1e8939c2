"""Export formats, loaded by the tools that they are for, where those are installed.

None of them is in the extra `test`: they bring window systems, or builds of torch.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg.formats import (
    coco_annotation,
    coco_dataset,
    fiftyone_detection,
    fiftyone_polyline,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    supervision_detections,
    yolo_line,
)
from simpleseg_polygon.geometry import Region

from .shapes import NAMED, SIZE, SQUARE, Mask, in_pixels, worst_error_px

pytestmark = pytest.mark.filterwarnings("default")  # what the tools warn of is not ours

all_named = pytest.mark.parametrize("region", NAMED.values(), ids=NAMED)
filled = pytest.mark.parametrize(
    "region", [r for r in NAMED.values() if r.parts], ids=[n for n, r in NAMED.items() if r.parts]
)

PAINTED_PX = 1.5
"""PIL and OpenCV paint outlines and bridges as well; OpenCV rounds vertices to whole pixels."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (SIZE.width, SIZE.height)).save(path)
    return path


@all_named
def test_labelme_reads_the_file_and_fills_the_mask(region: Region, picture: Path) -> None:
    label_file = pytest.importorskip("labelme._label_file")
    utils = pytest.importorskip("labelme.utils")
    document = labelme_document(labelme_shapes(region, SIZE, "dog"), SIZE, picture.name)
    path = picture.with_suffix(".json")
    path.write_text(json.dumps(document))
    loaded = label_file.read_label_file(str(path))
    rings = [shape["points"] for shape in loaded.shapes]
    assert rings == [shape["points"] for shape in document["shapes"]]
    mask: Mask = np.zeros(SIZE, np.bool_)
    for shape in loaded.shapes:
        assert (shape["label"], shape["shape_type"]) == ("dog", "polygon")
        mask |= utils.shape_to_mask(SIZE, shape["points"], "polygon")
    assert worst_error_px(mask, region, rings) <= PAINTED_PX


@filled
def test_supervision_reads_the_coco_data_set(region: Region, picture: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    annotation = coco_annotation(region, SIZE)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_dataset([picture.name], [SIZE], [annotation], {1: "dog"})))
    data_set = supervision.DetectionDataset.from_coco(str(picture.parent), str(path), True)
    assert data_set.classes == ["dog"]
    ((_, _, detections),) = list(data_set)
    (mask,) = np.asarray(detections.mask)
    polygons: Any = annotation["segmentation"]
    rings = [np.reshape(polygon, (-1, 2)).tolist() for polygon in polygons]
    assert worst_error_px(mask, region, rings) <= PAINTED_PX


@all_named
def test_supervision_has_the_object_as_detections(region: Region) -> None:
    supervision = pytest.importorskip("supervision")
    one = supervision_detections(region, SIZE, "dog", score=0.5, class_id=3)
    cat = supervision_detections(SQUARE, SIZE, "cat", score=0.25)
    both = supervision.Detections.merge([one, cat])
    assert both.confidence.tolist() == [0.5, 0.25][-len(both) :]
    assert len(both) == bool(region.parts) + 1
    if not region.parts:
        return
    assert worst_error_px(one.mask[0], region) == 0
    box = region.bounding_box()
    assert box is not None
    assert one.xyxy[0].tolist() == in_pixels([box[:2]])[0] + in_pixels([box[2:]])[0]
    assert (one.confidence[0], one.class_id[0], one.data["class_name"][0]) == (0.5, 3, "dog")
    assert supervision_detections(region, SIZE, "dog").confidence is None
    image = np.zeros((*SIZE, 3), np.uint8)
    drawn = supervision.MaskAnnotator(opacity=1).annotate(image.copy(), one)
    assert np.array_equal(drawn.any(axis=2), one.mask[0])


@all_named
def test_fiftyone_paints_both_kinds_of_label(region: Region) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    polyline = fiftyone_polyline(region, "dog", score=0.5)
    assert (polyline.label, polyline.confidence, polyline.closed) == ("dog", 0.5, True)
    frame = (SIZE.width, SIZE.height)
    rings = [in_pixels(points) for points in polyline.points]
    if rings:
        painted = polyline.to_segmentation(frame_size=frame).mask.astype(np.bool_)
        assert worst_error_px(painted, region, rings) <= PAINTED_PX
    detection = fiftyone_detection(region, SIZE, "dog", score=0.5)
    assert (detection.label, detection.confidence) == ("dog", 0.5)
    if rings:
        painted = detection.to_segmentation(frame_size=frame).mask.astype(np.bool_)
        assert worst_error_px(painted, region) == 0
    sample = fiftyone.Sample("a.png", outlines=fiftyone.Polylines(polylines=[polyline]))
    sample["masks"] = fiftyone.Detections(detections=[detection])
    assert fiftyone.Sample.from_dict(sample.to_dict()).masks.detections[0].mask is None or rings


@filled
def test_ultralytics_reads_the_label_line(region: Region, picture: Path) -> None:
    data = pytest.importorskip("ultralytics.data.utils")
    path = picture.with_suffix(".txt")
    path.write_text(yolo_line(region, 3))
    checked = data.verify_image_label((str(picture), str(path), "", False, 80, 0, 0, False))
    (segment,) = checked[3]
    assert checked[1][:, 0].tolist() == [3.0]
    assert checked[8] == 0  # corrupt labels
    ring = in_pixels(segment.tolist())
    mask = data.polygons2masks(tuple(SIZE), [np.array(ring).reshape(-1)], color=1)[0]
    assert worst_error_px(mask.astype(np.bool_), region, [ring]) <= PAINTED_PX


@all_named
def test_label_studio_accepts_the_prediction(region: Region) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    config = (
        '<View><Image name="picture" value="$image"/>'
        '<PolygonLabels name="tag" toName="picture"><Label value="dog"/></PolygonLabels></View>'
    )
    results = label_studio_results(
        region, SIZE, "dog", score=0.5, from_name="tag", to_name="picture"
    )
    checker = interface.LabelInterface(config)
    prediction = {"result": results, "score": 0.5, "model_version": "x"}
    assert checker.validate_prediction(prediction, return_errors=True) == []
    wrong = {**prediction, "result": label_studio_results(region, SIZE, "cat")}
    assert region.is_empty or checker.validate_prediction(wrong, return_errors=True)


@filled
def test_label_studio_s_converter_gives_the_outlines_back(
    region: Region, picture: Path, tmp_path: Path
) -> None:
    converter = pytest.importorskip("label_studio_sdk.converter")
    config = (
        '<View><Image name="image" value="$image"/>'
        '<PolygonLabels name="label" toName="image"><Label value="dog"/></PolygonLabels></View>'
    )
    results = label_studio_results(region, SIZE, "dog")
    task = {
        "id": 1,
        "data": {"image": str(picture)},
        "annotations": [{"id": 1, "result": results, "was_cancelled": False}],
    }
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([task]))
    out = tmp_path / "out"
    made = converter.Converter(config, str(tmp_path), download_resources=False)
    made.convert_to_coco(str(tasks), str(out), output_image_dir=str(tmp_path), is_dir=False)
    document = json.loads((out / "result.json").read_text())
    back = [np.reshape(a["segmentation"][0], (-1, 2)) for a in document["annotations"]]
    sent = [np.array(in_pixels(result["value"]["points"], 100)) for result in results]
    assert len(back) == len(sent)
    assert all(np.allclose(b, s, atol=0.01) for b, s in zip(back, sent, strict=True))
