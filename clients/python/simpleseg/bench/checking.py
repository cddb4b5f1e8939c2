"""Are the answers right while the server is under load: statuses, golden answers, the truth."""

from dataclasses import dataclass

from simpleseg.bench.questions import Question
from simpleseg.bench.wire import Answer, Told
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import overlap, region_iou
from simpleseg_polygon.raster import region_to_rle

_COMPARED_AT = ImageSize(512, 512)


@dataclass(frozen=True)
class Rules:
    """When an answer counts as wrong.

    ``golden_iou`` is the least IoU with the first answer to the same question at temperature 0:
    1 asks for the same answer to the letter, 0 for nothing. ``truth_iou`` is the least IoU with
    the truth, where there is one.
    """

    golden_iou: float = 1.0
    truth_iou: float = 0.0


class Checker:
    """Judges answers as they come. The first one to a question is its golden answer."""

    def __init__(self, rules: Rules = Rules()) -> None:
        self._rules = rules
        self._golden: dict[str, tuple[Told, ...]] = {}
        self.compared = self.changed = 0
        self.truth_ious: dict[str, list[float]] = {}

    def flaw(self, question: Question, answer: Answer, *, greedy: bool) -> str | None:
        """What is wrong with the answer, None for nothing."""
        if len(answer.told) != len(question.prompts()):
            return f"{len(answer.told)} results for {len(question.prompts())} prompts"
        bad = [told.status for told in answer.told if told.status not in ("ok", "empty")]
        if bad:
            return f"status {bad[0]}"
        key = question.key
        first = self._golden.setdefault(key, answer.told)
        if greedy and first is not answer.told and self._has_changed(first, answer.told):
            return "not the golden answer"
        return self._against_truth(key, question, answer)

    def _has_changed(self, first: tuple[Told, ...], now: tuple[Told, ...]) -> bool:
        self.compared += 1
        if first == now:
            return False
        self.changed += 1
        least = self._rules.golden_iou
        return least >= 1 or any(_iou(*pair) < least for pair in zip(first, now, strict=True))

    def _against_truth(self, key: str, question: Question, answer: Answer) -> str | None:
        if not question.truths:
            return None
        same = self._golden[key] == answer.told
        ious = self.truth_ious.get(key) if same else None
        if ious is None:
            ious = [
                overlap(region_to_rle(told.region(), truth.size), truth).iou
                for told, truth in zip(answer.told, question.truths, strict=True)
            ]
        self.truth_ious.setdefault(key, ious)
        return "far from the truth" if min(ious) < self._rules.truth_iou else None

    @property
    def mean_truth_iou(self) -> float | None:
        """Over the questions with a truth that were answered, the first answer of each."""
        ious = [iou for found in self.truth_ious.values() for iou in found]
        return sum(ious) / len(ious) if ious else None


def _iou(first: Told, now: Told) -> float:
    return region_iou(first.region(), now.region(), _COMPARED_AT)
