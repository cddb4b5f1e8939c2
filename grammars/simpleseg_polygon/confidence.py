"""How good an answer probably is, told from the probabilities of its tokens.

A language model writes a coordinate digit by digit. That it is unsure of a third decimal costs a
pixel; that it is unsure of a first decimal means that it wavers between places, or objects. So the
decimals are weighed apart, with weights fitted on held-out data.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

_LEAST_LOGPROB = -1e6
"""Below any that a model gives, and so small that sums of them stay finite."""
_DECIMALS = re.compile(r"\.([0-9]+)")


@dataclass(frozen=True)
class Evidence:
    """Means of natural log-probabilities over an answer's tokens, each at most 0.

    ``coordinate``: tokens that hold a decimal. ``leading``: those that hold the first decimal of a
    number; ``weakest`` is the least of these, ``first_vertex`` the mean of the first two.
    ``structure``: all other tokens.
    """

    coordinate: float
    leading: float
    weakest: float
    first_vertex: float
    structure: float


def evidence(tokens: Sequence[tuple[str, float]]) -> Evidence | None:
    """The evidence in an answer's (text, log-probability) tokens, however a tokenizer cuts numbers;
    None where no coordinate has a probability.

    >>> evidence([("[[0.", -0.1), ("5", -1.0), ("2", -2.0), ("]]", -0.3)])
    Evidence(coordinate=-1.5, leading=-1.0, weakest=-1.0, first_vertex=-1.0, structure=-0.2)
    """
    text = "".join(text for text, _ in tokens)
    decimals, firsts = set[int](), set[int]()
    for match in _DECIMALS.finditer(text):
        decimals.update(range(*match.span(1)))
        firsts.add(match.start(1))
    coordinate: list[float] = []
    leading: list[float] = []
    structure: list[float] = []
    start = 0
    for token, logprob in tokens:
        places = range(start, start + len(token))
        start += len(token)
        if not math.isfinite(logprob):
            continue
        known = max(_LEAST_LOGPROB, min(0.0, logprob))
        (structure if decimals.isdisjoint(places) else coordinate).append(known)
        if not firsts.isdisjoint(places):
            leading.append(known)
    if not leading:
        return None
    return Evidence(
        _mean(coordinate), _mean(leading), min(leading), _mean(leading[:2]), _mean(structure)
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Calibration:
    """Evidence -> expected IoU in (0, 1): a logistic function with a weight for each kind.

    >>> flat = Calibration(0.0, 0.0, 0.0, 0.0, 0.0, bias=0.0)
    >>> flat.expected_iou(Evidence(-1, -1, -2, -1, -0.1))
    0.5
    """

    coordinate: float
    leading: float
    weakest: float
    first_vertex: float
    structure: float
    bias: float

    def expected_iou(self, found: Evidence) -> float:
        weighed = (getattr(self, name) * value for name, value in asdict(found).items())
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, self.bias + math.fsum(weighed)))))

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "Calibration":
        """Raises ValueError unless there is a finite number for each weight and nothing else."""
        names = {field.name for field in fields(cls)}
        if values.keys() != names or not all(map(math.isfinite, values.values())):
            raise ValueError(f"a calibration has the numbers {', '.join(sorted(names))}")
        return cls(**values)
