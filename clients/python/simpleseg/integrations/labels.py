"""What a tool calls its classes, and what the model is asked for."""

from collections.abc import Iterable

from simpleseg.errors import InvalidInputError

Labels = str | Iterable[str]
"""Labels that are also the phrases which name their objects, or each ``label=phrase``; one by one,
or in one string with commas between."""


def phrases_of(labels: Labels) -> dict[str, str]:
    """Label -> phrase, in order. Raises InvalidInputError where there is none.

    >>> phrases_of("dog, car=the red car")
    {'dog': 'dog', 'car': 'the red car'}
    """
    items = labels.split(",") if isinstance(labels, str) else labels
    phrases = dict(_pair(item) for item in items if item.strip())
    if not phrases:
        raise InvalidInputError("give at least one label")
    return phrases


def _pair(item: str) -> tuple[str, str]:
    label, _, phrase = (part.strip() for part in item.partition("="))
    return label, phrase or label
