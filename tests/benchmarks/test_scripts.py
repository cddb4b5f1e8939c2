"""Each script of ``benchmarks/`` runs, at a tiny size, and says what its result came from."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def printed(script: str, *options: str) -> dict[str, Any]:
    """The object on the script's last line."""
    command = [sys.executable, str(FOLDER / script), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said = " ".join(["benchmarks/" + script, "--json", *options])
    assert result["command"].endswith(said)
    assert result["inputs"]
    assert result["hardware"]["cores"] >= 1
    assert "load_1min" in result["hardware"]
    return result


def test_rasterizers_agree_and_ours_is_faster_than_the_reference() -> None:
    result = printed("raster.py", "--quick")
    assert result["speedup_vs_reference_1024"] > 2
    for sides in result["rasterizers"].values():
        assert {"ours", "pycocotools", "cv2.fillPoly", "PIL.ImageDraw"} <= sides.keys()
        assert all(side["iou_with_ours"] > 0.99 for side in sides.values())


def test_every_grammar_backend_that_is_installed_takes_the_answers() -> None:
    backends = printed("grammar.py", "--quick", "--rounds", "1")["backends"]
    assert {"table", "outlines_core_cut", "xgrammar"} <= backends.keys()
    assert ("llguidance" in backends) == (find_spec("llguidance") is not None)
    assert all(one["step_us"] > 0 and one["compile_ms"] > 0 for one in backends.values())


def test_the_memory_of_mixed_requests_is_followed() -> None:
    result = printed("memory.py", "--requests", "60")
    assert result["requests"] >= 60
    assert len(result["rss_mib"]) >= 20
    assert result["growth_mib"] >= 0
    assert result["statuses"]["200"] > 20
    assert "500" not in result["statuses"]


@pytest.mark.slow
def test_a_soak_leaves_nothing_and_a_leak_is_seen() -> None:
    kept = ("descriptors", "threads", "tasks", "series")
    clean = printed("soak.py", "--requests", "300")
    assert clean["descriptors"] == clean["threads"] == clean["tasks"] == 0
    assert clean["series"] <= 10  # outcomes that depend on who hangs up when
    assert clean["rss_growth_mib"] <= 32
    leaky = printed("soak.py", "--requests", "300", "--leak")
    assert all(leaky[name] >= 20 for name in (*kept, "rss_growth_mib")), leaky


@pytest.mark.slow
def test_every_order_of_vertices_is_trained(tmp_path: Path) -> None:
    result = printed("order.py", "--out", str(tmp_path), "--quick")["results"]
    assert result.keys() == {"clockwise", "counter-clockwise", "unordered"}
    for found in result.values():
        assert found["images"] >= 64
        assert found["evaluation"].keys() == {"demo-single", "demo-multi"}


@pytest.mark.slow
def test_the_reference_and_the_embedded_engine_give_like_masks() -> None:
    options = ["--sides", "reference,embedded", "--rounds", "1", "--scenes", "3", "--skip-latency"]
    result = printed("compare.py", *options)
    assert result["throughput_vs_reference"] > 0
    assert result["throughput_vs_vllm_serve"] is None
    assert result["sides"]["reference"]["iou_with_embedded"] > 0.9
    assert all(side["cpu_ms_per_mask"] > 0 for side in result["sides"].values())


@pytest.mark.slow
def test_second_prompts_are_measured_after_the_first_and_beside_it() -> None:
    result = printed("second_prompt.py", "--limit", "2")
    assert result["ways"].keys() == {"engine", "segment", "jpeg", "kept", "together"}
    assert all(way["first_ms"] > 0 for way in result["ways"].values())
    assert result["ways"]["engine"]["cached_tokens"] > 0


@pytest.mark.slow
def test_the_front_end_of_the_embedded_engine_is_measured() -> None:
    result = printed("front_end.py", "--engine", "embedded", "--quick", "--scenes", "2")
    assert result["segment_p50_ms"] > 0
    assert result["cost_at_saturation"] > 0
    assert result["cpu_ms_per_mask"]["engine"] > 1
    assert {"decode_image", "generate", "rasterize"} <= result["stages_ms"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["embedded", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_the_stages_of_a_request_add_up(engine: str) -> None:
    result = printed("waterfall.py", "--engine", engine, "--quick", "--scenes", "3")
    stages = dict(result["waterfall_ms"])
    total = stages.pop("total")
    assert sum(stages.values()) == pytest.approx(total, abs=0.05)
    assert stages["vision_encoder"] > 0
    assert stages["preprocess"] > 0
    assert all(law["held_out"] for law in result["laws"].values())


@pytest.mark.vllm
def test_vllm_alone_and_ours_give_like_masks() -> None:
    options = ["--sides", "vllm_serve,vllm,remote", "--rounds", "1", "--scenes", "3"]
    result = printed("compare.py", *options, "--skip-latency")
    assert result["throughput_vs_vllm_serve"] > 0
    assert result["ratios"]["remote_vs_vllm_serve"]["median"] > 0
    ious = [side["iou"] for side in result["sides"].values()]
    assert max(ious) - min(ious) < 0.05


@pytest.mark.vllm
def test_the_front_end_of_vllm_is_measured() -> None:
    result = printed("front_end.py", "--quick", "--scenes", "2")
    assert result["engine"] == "vllm"
    assert result["front_end_ms"] < result["segment_p50_ms"]


@pytest.mark.vllm
def test_the_engines_write_the_same_tokens() -> None:
    result = printed("parity.py", "--limit", "2")
    assert result["ways"]["embedded, alone"]["identical"] == 2
    for counts in result["ways"].values():
        assert counts["identical"] + len(counts["differences"]) == 2
