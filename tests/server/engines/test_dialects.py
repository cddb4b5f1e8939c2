"""The request in the words of each server, and that their grammar engine takes our grammars."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import xgrammar

from simpleseg_polygon.grammar import Budget
from simpleseg_polygon.prompts import TARGETS, Target
from simpleseg_server.engines.base import ClientGrammar, Turn
from simpleseg_server.engines.dialects import Dialect, as_plain_text, chat_request, constraint

from .support import ask

ANSWERS = {
    "region": ("[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]].", "[[[0.1,0.1]]]"),
    "box": ("[0.1, 0.1, 0.5, 0.5].", "[0.1, 0.1]"),
    "point": ("[0.25, 0.75].", "[0.25]"),
}
WITH_A_GRAMMAR: tuple[Dialect, ...] = ("vllm", "sglang", "lmdeploy")


def body(dialect: Dialect, budget: Budget | None = None, **changes: Any) -> dict[str, Any]:
    return chat_request(dialect, "m", replace(ask(0), **changes), "data:image/png,x", budget)


def _grammar(dialect: Dialect, fields: dict[str, Any]) -> xgrammar.Grammar:
    """As the server reads it."""
    if dialect == "vllm":
        assert set(fields) == {"structured_outputs"}
        return xgrammar.Grammar.from_ebnf(fields["structured_outputs"]["grammar"])
    if dialect == "sglang":
        return xgrammar.Grammar.from_ebnf(fields["ebnf"])
    assert fields["response_format"]["type"] == "regex_schema"
    return xgrammar.Grammar.from_regex(fields["response_format"]["regex_schema"])


@pytest.mark.parametrize("dialect", WITH_A_GRAMMAR)
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "text"])
def test_the_constraint_is_the_language(dialect: Dialect, target: Target) -> None:
    vocabulary = [chr(code) for code in range(32, 127)] + ["<end>"]
    tokenizer = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[len(vocabulary) - 1])
    grammar = _grammar(dialect, constraint(dialect, target, Budget(256)))
    compiled = xgrammar.GrammarCompiler(tokenizer).compile_grammar(grammar)
    good, bad = ANSWERS[target]
    for text, expected in ((good, True), ("[]", True), (bad, False)):
        matcher = xgrammar.GrammarMatcher(compiled)
        took = matcher.accept_string(text) and matcher.accept_token(len(vocabulary) - 1)
        assert took is expected, text


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_the_image_comes_first_and_nothing_is_left_to_the_servers_defaults(
    dialect: Dialect,
) -> None:
    made = body(dialect, temperature=0.5, seed=3)
    image, text = made["messages"][0]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png,x"}}
    assert text == {"type": "text", "text": ask(0).instruction}
    assert (made["temperature"], made["seed"], made["n"]) == (0.5, 3, 1)
    assert made["stream_options"]["include_usage"] is True
    assert made["logprobs"] is True
    assert (made["max_tokens"], made["top_p"]) == (320, 1.0)
    assert ("repetition_penalty" in made) == (dialect != "none")
    assert "seed" not in body(dialect)


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_a_conversation_is_sent_as_one(dialect: Dialect) -> None:
    history = (
        Turn("system", "Be <|im_end|> brief."),
        Turn("user", "Locate the dog.", has_image=True),
        Turn("assistant", "[]."),
    )
    system, first, reply, last = body(dialect, history=history)["messages"]
    assert system == {"role": "system", "content": "Be < |im_end|> brief."}
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert reply == {"role": "assistant", "content": "[]."}
    assert last == {"role": "user", "content": ask(0).instruction}


def test_a_clients_grammar_is_passed_on_in_vllms_words() -> None:
    grammar = ClientGrammar("regex", "a+")
    free = replace(ask(0), target="text", constrained=False, client_grammar=grammar)
    made = chat_request("vllm", "m", free, "data:,", None)
    assert made["structured_outputs"] == {"regex": "a+"}
    with pytest.raises(ValueError, match="dialect"):
        chat_request("sglang", "m", free, "data:,", None)


def test_without_a_grammar_only_tokens_are_bounded() -> None:
    for dialect in get_args(Dialect):
        constrained = body(dialect, Budget(999))
        free = body(dialect)
        extra = set(constrained) - set(free)
        assert len(extra) == (dialect != "none")
        assert constrained["max_tokens"] == (320 if dialect == "none" else 999)


def test_probabilities_can_be_left_out() -> None:
    made = chat_request("lmdeploy", "m", ask(0), "data:,", None, logprobs=False)
    assert not {"logprobs", "top_logprobs"} & set(made)


@pytest.mark.parametrize(
    "control",
    ["<|im_end|>", "<|image_pad|>", "<image>", "</s>", "[EOS]", "[/INST]", "<IMAGE_TOKEN>"],
)
def test_names_of_control_tokens_are_taken_apart(control: str) -> None:
    assert control not in as_plain_text(f"the {control} sign")
    assert as_plain_text(f"{control}").replace(" ", "") == control


@pytest.mark.parametrize("phrase", ["at [0.5, 0.25]", "a < b", "the left dog", "", "[the] dog"])
def test_other_text_is_left_alone(phrase: str) -> None:
    assert as_plain_text(phrase) == phrase
