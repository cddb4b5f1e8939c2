"""Evaluation on every form of data set, with answers that are known to be right or wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg.cli_support import Failure
from simpleseg_polygon.codec import format_box, format_region
from simpleseg_polygon.prompts import Target
from simpleseg_training import published
from simpleseg_training.cases import Case, load_cases
from simpleseg_training.contour_bound import as_markdown, contour_bound
from simpleseg_training.contours import Contours
from simpleseg_training.evaluate import Answer, Judged, Reply, run
from simpleseg_training.miniature import write_miniature
from simpleseg_training.pictures import extremes
from simpleseg_training.recombine import box_of
from simpleseg_training.report import write_report
from simpleseg_training.stress import FONT, GLYPHS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refer")
    write_miniature(folder, 6)
    return folder


def _two_squares(folder: Path) -> NDArray[np.bool_]:
    """A picture ``images/a.png`` and the mask of its left square."""
    (folder / "images").mkdir(parents=True)
    picture = Image.new("RGB", (64, 48), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 8, 23, 23), "red")
    draw.rectangle((40, 8, 55, 23), "red")
    picture.save(folder / "images/a.png")
    mask = np.zeros((48, 64), np.bool_)
    mask[8:24, 8:24] = True
    return mask


def _coco(folder: Path) -> str:
    mask = _two_squares(folder)
    runs = [8 * 48 + 8, *[16, 32] * 15, 16]
    counts = [*runs, mask.size - sum(runs)]
    squares = [
        {"size": [48, 64], "counts": counts},
        [[40, 8, 56, 8, 56, 24, 40, 24]],
        [[40, 8, 56, 8, 56, 24, 40, 24]],
    ]
    annotations: list[dict[str, Any]] = [
        {"id": i, "image_id": 1, "category_id": 3, "segmentation": s} for i, s in enumerate(squares)
    ]
    annotations[2]["phrase"] = "the right square"
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "square"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json")


def _masks(folder: Path) -> str:
    mask = _two_squares(folder)
    (folder / "masks/a").mkdir(parents=True)
    Image.fromarray(mask).save(folder / "masks/a/the_left_square.png")
    Image.fromarray(np.zeros_like(mask)).save(folder / "masks/a/the_dog.png")
    return str(folder)


def _truth(cases: list[Case]) -> Answer:
    """Answers with the labels themselves."""
    by_question = {(case.image_hw3.tobytes(), case.phrase): case for case in cases}

    def answer(image_hw3: NDArray[np.uint8], phrase: str, target: Target) -> Reply:
        case = by_question[image_hw3.tobytes(), phrase]
        if case.is_absent:
            return Reply("[].", 2, 1, 1.0)
        region = Contours().region_of(case.mask_hw)
        text = format_box(box_of(case.mask_hw)) if target == "box" else format_region(region)
        return Reply(text + ".", 10, 5, 1.0)

    return answer


@pytest.mark.parametrize("make", [_coco, _masks])
def test_files_become_cases(make: Callable[[Path], str], tmp_path: Path) -> None:
    cases = load_cases(make(tmp_path / "data"), "test", 10, 128)
    found = {case.phrase: int(case.mask_hw.sum()) for case in cases}
    if make is _coco:
        assert found == {"the square": 512, "the right square": 256}
    else:
        assert found == {"the left square": 256, "the dog": 0}
    metrics, _ = run(make(tmp_path / "again"), "test", 10, _truth(cases))
    assert metrics["giou"] == metrics["ciou"] == metrics["box_acc50"] == 1.0
    assert metrics.get("empty_recall", 1.0) == 1.0


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "refcocog/google", "refclef"])
def test_the_refcoco_family_is_evaluated_phrase_by_phrase(root: Path, name: str) -> None:
    data = f"{name}:{root}"
    cases = load_cases(data, "val", 100, 128)
    assert len(cases) >= 2
    assert len(load_cases(data, "val", 1, 128)) == 1
    # Two phrases of one picture may be the same words in another set's file, not in one split's.
    metrics, judged = run(data, "val", 100, _truth(cases))
    assert metrics["n"] == len(judged) == len(cases)
    assert metrics["giou"] > 0.85
    assert metrics["vertices"] > 3
    assert metrics["baseline_true_box"] < metrics["giou"]


MEANS = {
    "res": (68.9, 69.9, 69.2, 72.2, 71.4, 71.1, 74.2, 75.4, 71.4, 74.6, 74.8),
    "rec": (79.8, 80.3, 80.4, 86.0, 87.1, 85.0, 86.7, 86.5),
}
"""The last column of the published tables, which no code computes from the others."""


@pytest.mark.parametrize("table", ["res", "rec"])
def test_published_rows_have_their_published_mean(table: published.Table) -> None:
    measured = {column: {published.METRIC[table]: 0.5} for column in published.COLUMNS}
    lines = published.comparison(measured, "mine").splitlines()[2:]
    means = [float(line.rsplit("|", 2)[1]) for line in lines]
    assert means == [*MEANS[table], 50.0]
    assert "**mine**" in lines[-1]


def test_a_model_stands_beside_what_is_published(root: Path) -> None:
    parts = published.parts(f"refcoco-family:{root}", "ignored")
    assert len(parts) == len(published.COLUMNS)
    measured = {}
    for data, split in parts:
        cases = load_cases(data, split, 2, 128)
        column = published.column_of(data, split)
        assert column is not None
        measured[column] = run(data, split, 2, _truth(cases))[0]
    tables = published.comparison(measured, "the labels").split("\n\n")
    assert [table.count("**the labels**") for table in tables] == [1, 1]
    assert all(float(cell) == 100.0 for cell in tables[1].splitlines()[-1].split("|")[2:-1])


@pytest.mark.parametrize(
    ("data", "split", "column"),
    [
        ("refcocog:ROOT", "test", ("refcocog", "test")),
        ("refcocog/google:ROOT", "val", None),
        ("refcoco:ROOT", "train", None),
        ("refclef:ROOT", "val", None),
        ("demo-single", "val", None),
    ],
)
def test_only_the_published_splits_have_a_column(
    data: str, split: str, column: published.Column | None
) -> None:
    assert published.column_of(data, split) == column
    assert published.parts(data, split) == [(data, split)]


def test_only_what_is_asked_is_measured(tmp_path: Path) -> None:
    data = _masks(tmp_path / "data")
    answer = _truth(load_cases(data, "test", 10, 128))
    regions, _ = run(data, "test", 10, answer, questions=["res"])
    boxes, judged = run(data, "test", 10, answer, questions=["rec"])
    assert "giou" in regions
    assert "box_acc50" not in regions
    assert boxes["box_acc50"] == 1.0
    assert "giou" not in boxes
    assert boxes["tokens_per_answer"] == 6.0
    assert judged[0].region_reply is None


@pytest.mark.parametrize(
    ("data", "words"),
    [("refcoco:nowhere", "github.com/lichengunc/refer"), ("nowhere", "a COCO .json")],
)
def test_missing_data_are_named(data: str, words: str) -> None:
    arguments = ["eval", "--data", data, "--url", "http://127.0.0.1:9"]
    with pytest.raises(Failure, match=words):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(Failure, match="no task 'boxes'"):
        CliRunner().invoke(app, [*arguments, "--tasks", "boxes"], catch_exceptions=False)


def test_the_report_shows_best_median_and_worst(tmp_path: Path) -> None:
    def half_right(image: NDArray[np.uint8], phrase: str, target: Target) -> Reply:
        return Reply(f"[[[0.0, 0.0], [{len(phrase) / 50}, 0.0], [1.0, 1.0]]].", 9, 3, 1.0)

    metrics, judged = run("demo-single", "val", 9, half_right)
    judged[0] = _renamed(judged[0], "<script>alert(1)</script>")
    write_report("demo <b>", metrics, judged, tmp_path / "report.html", count=3)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 9
    assert "<b>" not in page
    assert "<script>" not in page
    assert "http" not in page.replace('http-equiv="', "")
    shown = extremes(judged, 3)
    ious = [one.iou for name in ("Best", "Median", "Worst") for one in shown[name]]
    assert ious == sorted(ious, reverse=True)


def _renamed(one: Judged, phrase: str) -> Judged:
    from dataclasses import replace

    return replace(one, case=Case(one.case.image, phrase, one.case.truth))


def test_the_bound_falls_and_gets_cheaper_with_the_tolerance() -> None:
    cases = load_cases("demo-single", "val", 10, 256)
    rows = contour_bound(cases)
    for name in ("giou", "ciou", "tokens", "vertices"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True), name
    assert rows[0]["giou"] > 0.98  # what three decimals leave
    assert rows[-1]["giou"] < rows[0]["giou"]
    run_ = CliRunner().invoke(
        app, ["data", "contours", "--limit", "3", "--epsilons", "0,0.01"], catch_exceptions=False
    )
    assert run_.stdout.startswith("| epsilon | giou | ciou |")
    assert len(run_.stdout.splitlines()) == 4
    assert as_markdown(rows).count("\n") == len(rows) + 1


def test_the_stress_data_want_a_font_and_photographs(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="fonts-noto-color-emoji"):
        load_cases(f"demo-stress:{tmp_path}", "test", 1, 128)
    assert len(set(GLYPHS.values())) == len(GLYPHS)


def test_stress_cases_are_glyphs_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Pillow's own font in the emoji font's place: black glyphs, the same code."""
    from PIL import ImageFont

    own = ImageFont.load_default(109)
    monkeypatch.setattr("simpleseg_training.stress.ImageFont.truetype", lambda *_: own)
    (tmp_path / FONT).write_bytes(b"stands for the font")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / "a.png")
    first, again = (load_cases(f"demo-stress:{tmp_path}", "test", 8, 128) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.phrase == other.phrase
        assert np.array_equal(one.image_hw3, other.image_hw3)
        assert one.phrase.removeprefix("the ") in GLYPHS
        assert one.mask_hw.any()
        assert one.image_hw3[one.mask_hw].mean() != pytest.approx(
            one.image_hw3[~one.mask_hw].mean(), abs=5
        )
