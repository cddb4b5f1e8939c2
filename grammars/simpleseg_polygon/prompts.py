"""The instruction of every task: the same bytes in training, reinforcement learning and serving.

A task goes from any sources out of [text, point, box, region] to one target out of the same four
(SimpleSeg, arXiv 2601.19228, section 3). The sources become one noun phrase and the target becomes
the sentence around it, so that every combination is a sentence.
"""

from simpleseg_polygon.codec import TARGETS as TARGETS
from simpleseg_polygon.codec import Target as Target
from simpleseg_polygon.codec import format_box, format_point, format_region
from simpleseg_polygon.geometry import Box, Point, Region

RELEASED_TEMPLATES = (
    '"{}"\'s polygon',
    "What is the polygon of {} in the image?",
    "Output the polygon coordinates of {} in the image.",
    "Tell me the polygon coordinates of {} in the image.",
    "Give me the polygon coordinates of {} in the image.",
    "Help me locate the polygon of {}.",
    "Locate the polygon of {}.",
)
"""Questions for text -> region in the released data script (songtianhui/SimpleSeg,
data/data.py)."""

_TEMPLATES: dict[Target, tuple[str, ...]] = {
    "region": ("Output the polygon coordinates of {} in the image.", *RELEASED_TEMPLATES),
    "box": ("Output the bounding box coordinates of {} in the image.",),
    "point": ("Output the point coordinates of {} in the image.",),
    "text": ("Describe {} in the image.",),
}


def templates(target: Target) -> tuple[str, ...]:
    """The sentences for a target, each with one ``{}`` for the phrase; the first one is served.

    >>> templates("box")
    ('Output the bounding box coordinates of {} in the image.',)
    """
    return tuple(dict.fromkeys(_TEMPLATES[target]))


def phrase(
    *,
    text: str | None = None,
    point: Point | None = None,
    box: Box | None = None,
    region: Region | None = None,
) -> str:
    """The noun phrase that names the object by every source given.

    >>> phrase(text="the red car")
    'the red car'
    >>> phrase(point=Point(0.5, 0.25))
    'the object at [0.5, 0.25]'
    >>> phrase(text="the red car", box=Box(0.1, 0.2, 0.3, 0.4))
    'the red car in the box [0.1, 0.2, 0.3, 0.4]'

    Raises ValueError where no source is given or the text is blank.
    """
    places = []
    if point is not None:
        places.append(f"at {format_point(point)}")
    if box is not None:
        places.append(f"in the box {format_box(box)}")
    if region is not None:
        places.append(f"with the polygon {format_region(region)}")
    if text is None and not places:
        raise ValueError("a prompt needs a text, a point, a box or a region")
    if text is not None and not text.strip():
        raise ValueError("the text that names an object must not be blank")
    return " ".join(["the object" if text is None else text, *places])


def instruction(target: Target, object_phrase: str) -> str:
    """The served instruction for a target about the object named by ``phrase(...)``.

    >>> instruction("region", "the left dog")
    'Output the polygon coordinates of the left dog in the image.'
    """
    return templates(target)[0].format(object_phrase)


def match_instruction(text: str) -> tuple[Target, str] | None:
    """The target and the object phrase of a served or released instruction, or None.

    White space around the instruction and the phrase is ignored; anything else must agree to the
    letter. Takes any string, in linear time.

    >>> match_instruction("Locate the polygon of the left dog.")
    ('region', 'the left dog')
    >>> match_instruction("Where is the dog?") is None
    True
    """
    sentence = text.strip()
    for target in TARGETS:
        for template in templates(target):
            object_phrase = _phrase_in(template, sentence)
            if object_phrase:
                return target, object_phrase
    return None


def _phrase_in(template: str, sentence: str) -> str:
    """What stands in the template's place in a sentence; empty if it is another sentence."""
    before, _, after = template.partition("{}")
    if not (sentence.startswith(before) and sentence.endswith(after)):
        return ""
    return sentence[len(before) : len(sentence) - len(after)].strip()
