"""The configuration files for Ray name settings that there are; the fleet's arithmetic."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from simpleseg_server.config import Settings

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy/ray").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_give_settings_and_numbers_that_fit(path: Path) -> None:
    (application,) = yaml.safe_load(path.read_text())["applications"]
    plan = application["args"]
    settings = Settings(**plan["settings"])
    assert plan["min_engines"] <= plan["max_engines"]
    assert plan.get("engine_gpus", 0) == (settings.tensor_parallel_size or 0)
    module, _, name = application["import_path"].partition(":")
    source = ROOT / "server" / Path(*module.split(".")).with_suffix(".py")
    assert f"def {name}(" in source.read_text()


@pytest.fixture(scope="module")
def fleet() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("fleet", ROOT / "benchmarks/fleet.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fleet"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_a_fleet_grows_as_its_load(fleet: ModuleType) -> None:
    small, large = (fleet.calculate(fleet.assumed([], gpus)) for gpus in (96, 960))  # whole racks
    for group, name in (("front_ends", "files_in_gbit_s"), ("failures", "gpu_failures_per_day")):
        assert large[group][name] == pytest.approx(10 * small[group][name], rel=0.1)
    assert large["fan_out"]["connections"] > 80 * small["fan_out"]["connections"]
    away = (one["failures"]["capacity_away"] for one in (small, large))
    assert next(away) == pytest.approx(next(away), rel=0.1)
    assert 0 < large["caches"]["beyond_own_share"] < 0.2


def test_assumptions_can_be_set_and_are_known(fleet: ModuleType) -> None:
    assert fleet.assumed(["rate_per_gpu_s=9"], 7).rate_per_gpu_s == 9.0
    with pytest.raises(ValueError, match="no assumption 'x'"):
        fleet.assumed(["x=1"], 7)


def test_spares_cover_all_but_one_case_in_ten_thousand(fleet: ModuleType) -> None:
    assert fleet.spares(0.0) == 0
    assert fleet.spares(1.0) == 6  # P(X > 6) = 8.3e-5 for a mean of 1, P(X > 5) = 5.9e-4
