"""Instructions: every task has its own sentence, and sentences are recognised."""

import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon import prompts
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_polygon.prompts import (
    RELEASED_TEMPLATES,
    TARGETS,
    Target,
    instruction,
    match_instruction,
    phrase,
    templates,
)

TEXT = "the left dog"
POINT = Point(0.5, 0.25)
BOX = Box(0.1, 0.2, 0.3, 0.4)
REGION = Region(((Point(0.1, 0.2), Point(0.5, 0.2), Point(0.5, 0.9)),))

stripped_text = st.text(min_size=1).map(str.strip).filter(bool)


def _phrase_of(has_text: bool, has_point: bool, has_box: bool, has_region: bool) -> str:
    return phrase(
        text=TEXT if has_text else None,
        point=POINT if has_point else None,
        box=BOX if has_box else None,
        region=REGION if has_region else None,
    )


def test_every_task_has_its_own_sentence() -> None:
    sources = [chosen for chosen in itertools.product((False, True), repeat=4) if any(chosen)]
    sentences = [
        instruction(target, _phrase_of(*chosen)) for target in TARGETS for chosen in sources
    ]
    assert len(sentences) == 15 * 4
    assert len(set(sentences)) == len(sentences)
    again = [instruction(target, _phrase_of(*chosen)) for target in TARGETS for chosen in sources]
    assert again == sentences


def test_the_bytes_of_the_sentences() -> None:
    """Trained checkpoints depend on these: a change here asks for new training."""
    assert [instruction(target, phrase(text=TEXT)) for target in TARGETS] == [
        "Output the polygon coordinates of the left dog in the image.",
        "Output the bounding box coordinates of the left dog in the image.",
        "Output the point coordinates of the left dog in the image.",
        "Describe the left dog in the image.",
    ]
    assert _phrase_of(True, True, True, True) == (
        "the left dog at [0.5, 0.25] in the box [0.1, 0.2, 0.3, 0.4] "
        "with the polygon [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]"
    )
    assert _phrase_of(False, False, True, False) == "the object in the box [0.1, 0.2, 0.3, 0.4]"


def test_released_templates_are_accepted_once_each() -> None:
    assert len(RELEASED_TEMPLATES) == 7
    assert set(RELEASED_TEMPLATES) <= set(templates("region"))
    for target in TARGETS:
        assert len(set(templates(target))) == len(templates(target))
        assert all(template.count("{}") == 1 for template in templates(target))


def test_a_phrase_needs_a_source() -> None:
    with pytest.raises(ValueError, match="needs a text"):
        phrase()


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_text_names_nothing(blank: str) -> None:
    with pytest.raises(ValueError, match="blank"):
        phrase(text=blank, point=POINT)


@settings(max_examples=60, deadline=None)
@given(stripped_text, st.sampled_from(TARGETS), st.integers(0, 9))
def test_every_template_is_recognised(words: str, target: Target, which: int) -> None:
    template = templates(target)[which % len(templates(target))]
    assert match_instruction(template.format(words)) == (target, words)
    assert match_instruction(f"\n {template.format(words)}  ") == (target, words)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text("Output the polygon of{} in image.\"'"))
def test_any_text_is_matched_or_not(text: str) -> None:
    match match_instruction(text):
        case None:
            pass
        case target, words:
            assert words == words.strip() != ""
            assert any(t.format(words) == text.strip() for t in templates(target))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "Where is the left dog?",
        "Output the polygon coordinates of the left dog",
        "output the polygon coordinates of the left dog in the image.",
        "Output the polygon coordinates of  in the image.",
        "Output the polygon coordinates of in the image.",
        "Locate the polygon of .",
        "Locate the polygon of the left dog. Then sing!",
        "Please locate the polygon of the left dog.",
        '"',
        "\"'s polygon",
        '""\'s polygon',
    ],
)
def test_other_sentences_are_not_recognised(text: str) -> None:
    assert match_instruction(text) is None


def test_white_space_around_the_phrase_is_ignored() -> None:
    assert match_instruction("Locate the polygon of \t the left dog .") == (
        "region",
        "the left dog",
    )


def test_phrases_are_taken_literally() -> None:
    for words in ("{0}", "{}", "%s%n", "<script>", "a\nb", "in the image.", "é\ud800"):
        for target in TARGETS:
            assert match_instruction(instruction(target, words)) == (target, words)


def test_examples() -> None:
    outcome = doctest.testmod(prompts)
    assert outcome.attempted > 0
    assert outcome.failed == 0
