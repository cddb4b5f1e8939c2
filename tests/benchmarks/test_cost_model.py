"""The parts of the benchmarks that are arithmetic."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cost_model() -> ModuleType:
    return _load("cost_model")


def test_a_law_is_found_and_checked_on_what_it_has_not_seen(cost_model: ModuleType) -> None:
    rows = [((1.0, float(x), float(x % 3)), 2.0 + 0.5 * x + 4.0 * (x % 3)) for x in range(1, 13)]
    rows[4] = (rows[4][0], rows[4][1] * 2)
    found = cost_model.checked(["a", "b", "c"], rows, lambda number: number in (1, 4))
    assert list(found["law"].values()) == pytest.approx([2.0, 0.5, 4.0])
    assert found["mean_error_fitted"] == pytest.approx(0, abs=1e-6)
    assert found["mean_error_held_out"] == pytest.approx(0.25)  # half of the doubled one
    assert len(found["held_out"]) == 2


def test_a_perimeter_is_that_of_the_closed_ring(cost_model: ModuleType) -> None:
    from simpleseg_polygon.geometry import Point, Region

    square = Region(
        (tuple(Point(x, y) for x, y in ((0.1, 0.1), (0.6, 0.1), (0.6, 0.6), (0.1, 0.6))),)
    )
    assert cost_model.perimeter(square) == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_reference_reads_parts_and_drops_what_is_no_polygon() -> None:
    reference = _load("reference")
    text = "It is [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.6, 0.6], [0.9, 0.6]]]."
    polygons = reference.polygons_of(text)
    assert polygons == [[0.1, 0.2, 0.5, 0.2, 0.5, 0.9], [0.6, 0.6, 0.9, 0.6]]
    mask = reference.mask_of(polygons, 100, 200)
    assert mask.shape == (100, 200)
    assert 2500 < np.count_nonzero(mask) < 3100  # half of 80 x 70
    assert not reference.mask_of(reference.polygons_of("nothing"), 10, 10).any()
