"""Fit the score of a model: answers to held-out questions -> expected IoU.

A language model's probabilities tell better from worse answers but are no IoU. Held-out questions
give pairs of evidence and true IoU; a logistic function is fitted to one part of them, and how far
it can be trusted is measured on the other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.confidence import Calibration, Evidence
from simpleseg_polygon.prompts import Target
from simpleseg_training.export import PROFILE_FILE

BINS = 10
_RIDGE = 1.0
_NEWTON_STEPS = 25


@dataclass(frozen=True)
class Scored:
    """One answered question: what its tokens' probabilities say, and how good it really is."""

    evidence: Evidence
    iou: float


@dataclass(frozen=True)
class Reliability:
    """Expected against true mean IoU in bins of the expectation, ten of equal count.

    ``error`` is the expected calibration error: the mean distance of the two, weighed by count.
    ``correlation`` is Pearson's, over single answers; 0 where one of the two does not vary.
    """

    expected: tuple[float, ...]
    actual: tuple[float, ...]
    counts: tuple[int, ...]
    error: float
    correlation: float


def fit(answers: Sequence[Scored]) -> Calibration:
    """The calibration that makes the true IoUs most likely (cross-entropy with a small ridge, by
    Newton's method on standardised evidence). Raises ValueError for fewer than two answers.

    >>> sure, unsure = Evidence(-0.1, -0.1, -0.1, -0.1, 0), Evidence(-2, -2, -2, -2, 0)
    >>> calibration = fit([Scored(sure, 0.9), Scored(unsure, 0.2)] * 20)
    >>> round(calibration.expected_iou(sure), 1), round(calibration.expected_iou(unsure), 1)
    (0.9, 0.2)
    """
    if len(answers) < 2:
        raise ValueError("a calibration needs answers to at least two questions")
    values = np.array([astuple(answer.evidence) for answer in answers])
    ious = np.array([answer.iou for answer in answers])
    mean, deviation = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    weights = _logistic((values - mean) / deviation, ious)
    slopes = weights[:-1] / deviation
    bias = float(weights[-1] - slopes @ mean)
    names = Evidence.__dataclass_fields__
    return Calibration(**dict(zip(names, map(float, slopes), strict=True)), bias=bias)


def _logistic(inputs: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the inputs' columns and, last, the bias, which has no ridge."""
    columns = np.column_stack([inputs, np.ones(len(inputs))])
    ridge = np.array([_RIDGE] * inputs.shape[1] + [1e-9])
    weights = np.zeros(len(ridge))
    for _ in range(_NEWTON_STEPS):
        share = 1 / (1 + np.exp(-columns @ weights))
        slope = columns.T @ (share - wanted) + ridge * weights
        curvature = (columns.T * (share * (1 - share))) @ columns + np.diag(ridge)
        weights -= np.linalg.solve(curvature, slope)
    return weights


def reliability(calibration: Calibration, answers: Sequence[Scored]) -> Reliability:
    """How far a calibration can be trusted, on answers that it was not fitted to."""
    expected = np.array([calibration.expected_iou(answer.evidence) for answer in answers])
    actual = np.array([answer.iou for answer in answers])
    bins = np.array_split(np.argsort(expected), min(BINS, len(answers)))
    means = [(float(expected[one].mean()), float(actual[one].mean())) for one in bins]
    counts = [len(one) for one in bins]
    distances = [abs(a - b) * n for (a, b), n in zip(means, counts, strict=True)]
    return Reliability(
        tuple(a for a, _ in means),
        tuple(b for _, b in means),
        tuple(counts),
        sum(distances) / len(answers),
        _correlation(expected, actual),
    )


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if not np.ptp(a) or not np.ptp(b):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def as_dict(calibration: Calibration) -> dict[str, float]:
    """As it stands in a checkpoint's ``simpleseg.json``, under ``calibration`` and its target."""
    return {name: round(value, 4) for name, value in asdict(calibration).items()}


def write_profile(fitted: Mapping[Target, Calibration], checkpoint: Path) -> None:
    """Put calibrations into a checkpoint's ``simpleseg.json``, beside what is there."""
    file = checkpoint / PROFILE_FILE
    profile = json.loads(file.read_text()) if file.exists() else {}
    profile["calibration"] = {target: as_dict(one) for target, one in fitted.items()}
    file.write_text(json.dumps(profile, indent=1) + "\n")


def write_diagram(found: Reliability, path: Path) -> None:
    """Expected against true IoU as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.plot(found.expected, found.actual, marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score (expected IoU)", ylabel="true mean IoU")
    axes.set_title(f"{sum(found.counts)} answers, calibration error {found.error:.3f}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
