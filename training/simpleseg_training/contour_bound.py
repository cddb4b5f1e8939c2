"""How well a contour itself can fit at each tolerance, and what it costs in tokens: the upper bound
of every model that writes such contours."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from simpleseg_polygon.codec import format_region, parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import Overlap, boundary_f, cumulative_iou, giou, overlap
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.case import Case
from simpleseg_training.contours import Contours, Convention

EPSILONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)


def contour_bound(
    cases: Iterable[Case],
    epsilons: Sequence[float] = EPSILONS,
    convention: Convention = "edges",
    count_tokens: Callable[[str], int] | None = None,
) -> list[dict[str, float]]:
    """A row for each tolerance: ``epsilon``, ``giou`` and ``ciou`` of the labels with their masks,
    ``boundary_f``, ``vertices`` and ``tokens`` (Qwen2.5's, where no other count is given; mean and
    ``tokens_p90``). Absent objects are passed over; raises ValueError where nothing is left."""
    masks = [case.mask_hw for case in cases if not case.is_absent]
    count = count_tokens or _qwen_tokens()
    rows = []
    for epsilon in epsilons:
        contours = Contours(convention, epsilon_ratio=epsilon, min_epsilon_px=0.0)
        overlaps: list[Overlap] = []
        boundaries, vertices, tokens = [], [], []
        for mask in masks:
            answer = format_region(contours.region_of(mask))
            region = parse_region(answer).value  # three decimals are part of what is lost
            drawn = region_to_mask(region, ImageSize(*mask.shape))
            overlaps.append(overlap(drawn, mask))
            boundaries.append(boundary_f(drawn, mask))
            vertices.append(region.vertex_count)
            tokens.append(count(answer + "."))
        rows.append(
            {
                "epsilon": epsilon,
                "giou": giou([one.iou for one in overlaps]),
                "ciou": cumulative_iou(overlaps),
                "boundary_f": giou(boundaries),
                "vertices": float(np.mean(vertices)),
                "tokens": float(np.mean(tokens)),
                "tokens_p90": float(np.quantile(tokens, 0.9)),
            }
        )
    return rows


def _qwen_tokens() -> Callable[[str], int]:
    from tokenizers import Tokenizer

    from simpleseg_training.tokenizer import qwen_tokenizer_file

    tokenizer = Tokenizer.from_file(str(qwen_tokenizer_file()))
    return lambda text: len(tokenizer.encode(text).ids)


def as_markdown(rows: Sequence[dict[str, float]]) -> str:
    """The rows as a table."""
    names = list(rows[0])
    head = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join(
        [*head, *(f"| {' | '.join(f'{row[n]:.4g}' for n in names)} |" for row in rows)]
    )
