"""Learning how outlines go on: the loss is that of the forecasts, and it falls."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simpleseg_polygon.forecast import Forecast, OutlineStatistics, Trail
from simpleseg_training import outline_statistics
from simpleseg_training.outline_statistics import Examples, fit, log_mass, loss, outlines, save


def test_log_mass_is_a_distribution() -> None:
    numbers = torch.arange(-3000.0, 3000.0)
    for centre, log_scale in ((3.3, -1.2), (-40.0, 2.0), (100.0, 4.0)):
        mass = log_mass(numbers, torch.tensor(centre), torch.tensor(log_scale)).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-2)


def test_the_loss_is_the_surprise_at_the_forecast() -> None:
    torch.manual_seed(1)
    output = torch.randn(1, 6 * outline_statistics.COMPONENTS + 1)
    step, last, target = 30.0, (400, 500), (417, 476)
    forecast = Forecast(output[0].numpy(), last, step)

    def chance(below: np.ndarray) -> float:
        low, high, least, most = below
        return float((high - low) / (most - least))

    x = chance(forecast.x.below(np.array([416.5, 417.5, -1e5, 1e5], np.float32)))
    y = chance(forecast.y(417).below(np.array([475.5, 476.5, -1e5, 1e5], np.float32)))
    ways = torch.tensor([[target[0] - last[0], target[1] - last[1], 0.0]])
    nats = loss(output, ways, torch.tensor([step]), torch.ones(1)).item()
    # The density of x at a place stands for its mass within half a unit.
    assert nats == pytest.approx(-np.log(x * y * (1 - forecast.ends)), rel=0.02)


def test_learning_lowers_the_loss_and_what_is_saved_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline_statistics, "WARM_UP_STEPS", 5)
    torch.manual_seed(0)
    examples = Examples(list(outlines(np.random.default_rng(0), scenes=12)))
    assert len(examples.steps) > 100
    network = fit(examples, steps=80)

    def nats(model: torch.nn.Module) -> float:
        with torch.no_grad():
            output = model(examples.inputs)
            return loss(output, examples.ways, examples.steps, examples.weights).item()

    assert nats(network) < nats(outline_statistics.new_network()) - 1
    file = tmp_path / "statistics.npz"
    save(network, file)
    with np.load(file) as arrays:
        read = OutlineStatistics([arrays[name] for name in arrays.files])
    with torch.no_grad():
        output = network(examples.inputs[:1])[0]
    first_ring = next(outlines(np.random.default_rng(0), scenes=12))
    forecast = read.forecast(Trail.of(first_ring[:1]))
    assert forecast.ends == pytest.approx(torch.sigmoid(output[-1]).item(), abs=0.01)
