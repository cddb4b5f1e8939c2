"""How sure an answer is: one number for a result, and what it was made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from simpleseg.schema import Scores, ScoreType
from simpleseg_polygon.codec import Target
from simpleseg_polygon.confidence import Calibration, evidence
from simpleseg_server.engines.base import TokenLogprob

Calibrations = Mapping[Target, Calibration]
"""For some targets, what a model's probabilities say about the IoU of its answers."""


def score_of(
    tokens: Sequence[TokenLogprob], target: Target, calibrations: Calibrations
) -> tuple[float, ScoreType] | None:
    """The expected IoU, where the model was calibrated for this target; else the geometric mean
    probability of the tokens that carry the answer: those with a digit, or all of a description.
    None where the engine gave no probabilities."""
    if target in calibrations:
        found = evidence([(token.text, token.logprob) for token in tokens])
        if found is not None:
            return round(calibrations[target].expected_iou(found), 6), "expected_iou"
    counted = [t.logprob for t in tokens if target == "text" or any(map(str.isdigit, t.text))]
    finite = [value for value in counted if math.isfinite(value)]
    if not finite:
        return None
    mean = round(math.exp(min(0.0, math.fsum(finite) / len(finite))), 6)
    if target == "text":
        return mean, "geometric_mean_token_probability"
    return mean, "geometric_mean_coordinate_token_probability"


def scores_of(tokens: Sequence[TokenLogprob]) -> Scores | None:
    """What there is to calibrate a score from; None for an answer without coordinates."""
    found = evidence([(token.text, token.logprob) for token in tokens])
    if found is None:
        return None
    return Scores(**{name: math.exp(value) for name, value in asdict(found).items()})
