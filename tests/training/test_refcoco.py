"""The RefCOCO family in REFER's own files, made small; and pickles that mean harm."""

import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg.cli_support import Failure
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import Rle, region_to_mask, rle_to_mask
from simpleseg_training.coco import mask_of_segmentation
from simpleseg_training.miniature import write_miniature
from simpleseg_training.refcoco import SETS, SPLIT_BY, SetName, in_split, read_references
from simpleseg_training.safe_pickle import UnsafePickle, load_plain
from simpleseg_training.scenes import render_scene


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refer")
    write_miniature(folder)
    return folder


def _run(*arguments: str) -> dict[str, Any]:
    run = CliRunner().invoke(app, ["data", "refcoco", *arguments], catch_exceptions=False)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("name", "by"), [(name, by) for name in SETS for by in SPLIT_BY[name]])
def test_masks_are_those_of_the_scenes(root: Path, name: SetName, by: str) -> None:
    references = read_references(root, name, by)
    assert len({ref.id for ref in references}) == len(references) > 10
    for ref in references:
        with Image.open(ref.image) as picture:
            assert picture.size == (ref.size.width, ref.size.height)
        masks = render_scene(ref.image_id, 2, 4, ref.size.width).masks_hw
        # COCO fills polygons by a rule of its own, which differs along edges.
        assert max(iou(ref.mask(), mask) for mask in masks) > (0.99 if name == "refclef" else 0.8)


def test_splits_are_named_as_in_refer(root: Path) -> None:
    references = read_references(root, "refclef", "unc")
    assert {ref.split for ref in in_split(references, "test")} == {"testA", "testB"}
    assert {ref.split for ref in in_split(references, "testA")} == {"testA"}
    with pytest.raises(
        ValueError, match="no split 'testC' in this set: it has testA, testB, train"
    ):
        in_split(references, "testC")
    with pytest.raises(ValueError, match="refcoco\\+ is split by unc, not 'google'"):
        read_references(root, "refcoco+", "google")


def test_a_missing_set_says_where_it_is_to_be_had(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="github.com/lichengunc/refer"):
        read_references(tmp_path, "refcoco")
    (tmp_path / "refcoco").symlink_to(root / "refcoco")
    with pytest.raises(ValueError, match="train2014.zip"):
        read_references(tmp_path, "refcoco")
    with pytest.raises(Failure, match="no set named 'refcocoo'"):
        _run(str(root), "-o", str(tmp_path / "x.jsonl"), "--sets", "refcocoo")
    with pytest.raises(Failure, match=r"end the name in \.jsonl, \.parquet, \.tar"):
        _run(str(root), "-o", str(tmp_path / "x.csv"))


def test_fine_tuning_pairs_recombine_and_hold_nothing_out(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs" / "sft.jsonl"
    told = _run(str(root), "-o", str(out))
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert told["written"] == len(records) > 100
    assert told["left_out"]["held_out_elsewhere"] > 0
    assert len({record["id"] for record in records}) == len(records)
    tasks = {tuple(record["task"]) for record in records}
    assert {("text", "region"), ("box", "region"), ("point", "region"), ("text", "box")} <= tasks
    held_out = {
        os.path.relpath(ref.image, out.parent)
        for name in SETS
        for ref in read_references(root, name)
        if ref.split != "train"
    }
    assert not held_out & {record["image"] for record in records}
    assert all((out.parent / record["image"]).is_file() for record in records)


def test_prompts_for_reinforcement_learning_hold_the_truth(root: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    out = tmp_path / "rl.parquet"
    told = _run(str(root), "-o", str(out), "--kind", "rl", "--limit", "40")
    records = parquet.read_table(out).to_pylist()
    assert told["written"] == len(records) == 40
    for record in records:
        assert record["task"] == ["text", "region"]
        truth = rle_to_mask(Rle.from_coco(record["truth_rle"]))
        label = region_to_mask(parse_region(record["answer"]).value, ImageSize(*truth.shape))
        assert iou(label, truth) > 0.75


def test_shards_hold_their_pictures_and_old_ones_go(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs-000001.tar").write_bytes(b"of an earlier run")
    _run(str(root), "-o", str(tmp_path / "pairs.tar"), "--limit", "5", "--sets", "refclef:berkeley")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs-000000.tar"]
    with tarfile.open(tmp_path / "pairs-000000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 10
        for picture, about in zip(names[::2], names[1::2], strict=True):
            assert Path(picture).stem == Path(about).stem
            content = tar.extractfile(about)
            assert content is not None
            assert json.load(content)["image"] == picture


def test_same_arguments_same_pairs(root: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")]
    options = [[], [], ["--order", "unordered"], ["--convention", "released"]]
    for out, more in zip(outs, options, strict=True):
        _run(str(root), "-o", str(out), "--sets", "refcocog", "--kind", "rl", *more)
    texts = [out.read_text() for out in outs]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.p"
    path.write_bytes(
        b"(lp0\n(dp1\nS'split'\np2\nS'train'\np3\nsS'ref_id'\np4\nL7L\nsS'x'\nF1.5\nsa."
    )
    assert load_plain(path) == [{"split": "train", "ref_id": 7, "x": 1.5}]


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps([_Harm()], protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    + [
        b"cos\nsystem\n(S'touch harmed'\ntR.",
        b"(S'touch harmed'\nios\nsystem\n.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"Pelsewhere\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        pickle.dumps(np.float64(1.0)),
    ],
)
def test_pickles_that_import_are_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("refs.p").write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\.p: ") as caught:
        load_plain(Path("refs.p"))
    if content[:2] != b"\x80\x02":  # no such extension is registered: a broken pickle
        assert caught.type is UnsafePickle or b"\x82" in content
    assert [path.name for path in tmp_path.iterdir()] == ["refs.p"]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1])[:-1]])
def test_broken_pickles_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        load_plain(path)


def test_every_form_of_segmentation_is_cocos_mask() -> None:
    size = ImageSize(40, 60)
    polygons = [[5.0, 5.0, 30.5, 8.0, 20.0, 35.0], [40.0, 20.0, 55.0, 20.0, 50.0, 39.0]]
    whole = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    truth = rle_to_mask(Rle.from_coco(whole))
    flat = truth.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.pad(flat.astype(np.int8), 1)))
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    for form in (polygons, whole, [whole], {"size": [*size], "counts": counts}):
        assert np.array_equal(mask_of_segmentation(form, size), truth)


@pytest.mark.parametrize(
    "segmentation", [[[1.0, 2.0, float("nan"), 3.0, 4.0, 5.0]], [[1.0] * 7], [["a"] * 6]]
)
def test_polygons_that_are_none_are_refused(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"polygon|convert"):
        mask_of_segmentation(segmentation, ImageSize(10, 10))


def test_polygons_outside_the_image_are_cut() -> None:
    mask = mask_of_segmentation(
        [[-1e30, -5.0, 1e30, -5.0, 1e30, 1e30, -5.0, 1e30]], ImageSize(8, 8)
    )
    assert mask.all()
