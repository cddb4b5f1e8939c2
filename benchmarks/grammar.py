"""What constrains decoding, at Qwen's 152k vocabulary: time to compile, and time of every step.

    python benchmarks/grammar.py [--quick] [--json] [--rounds N]

Each backend is put to the same answers: outlines of held-out scenes in the natural tokens, under
the region's grammar with room for 64 vertices. ``compile_ms`` is cold: a grammar that the backend
has not seen (another bound each time, and an emptied cache where it has one), over what it keeps of
the vocabulary, whose time is ``vocabulary_ms``. ``warm_ms`` is what the second request with a
grammar pays. ``step_us`` is the mask of one token and taking the token, by the backend's own way:
a bitmask of 152,064 bits for xgrammar and llguidance, as vLLM uses them; ids for the others.
``first_step_us`` is that of the first answer under a grammar, which fills what the backend caches.
Times are CPU times of the one thread that works, so that other work on the machine does not count;
rounds go through the backends by turns, and figures are medians.

With ``--json`` the last line printed is one object; lower is better. ``step_us`` and
``compile_ms`` at the top are the token table's. A backend that is not installed is left out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol

from drafting_replay import LARGE_PX, Tokens, scene_masks, simplified
from provenance import provenance

from simpleseg_polygon.automaton import ALPHABET
from simpleseg_polygon.codec import format_region
from simpleseg_polygon.grammar import Budget, TokenTable, ebnf, max_tokens_for, regex
from simpleseg_training.tokenizer import qwen_tokenizer_file

PACKAGES = ("outlines-core", "xgrammar", "llguidance", "tokenizers")
POINTS = 64
LOGITS = 152_064  # of Qwen2.5-VL-7B; the tokenizer has 151,665 tokens
ROUNDS, QUICK_ROUNDS = 15, 2
ANSWERS, QUICK_ANSWERS = 20, 3
EPSILON = 0.005
SLOW = "outlines_core_full"  # compiles for seconds, and so once

Step = Callable[[int], object]


class Backend(Protocol):
    """``compile`` makes the grammar of a budget; ``begin`` an answer's step function of it."""

    def compile(self, points: int) -> object: ...
    def begin(self, compiled: Any) -> Step: ...


class Table:
    """This project's token table."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._spelled = {
            token: text
            for token, text in tokens.vocabulary.items()
            if text and not text.translate(None, ALPHABET)
        }

    def compile(self, points: int) -> tuple[TokenTable, Budget]:
        table = TokenTable("region", self._spelled, self._tokens.end)
        budget = budget_of(points)
        table.walk(budget)
        return table, budget

    def begin(self, compiled: tuple[TokenTable, Budget]) -> Step:
        table, budget = compiled
        walk = table.walk(budget)

        def step(token: int) -> None:
            walk.allowed()
            walk.advance(token)

        return step


class Outlines:
    """outlines_core, over the tokens that answers can hold or over all."""

    def __init__(self, tokens: Tokens, *, is_cut: bool) -> None:
        from outlines_core import Index, Vocabulary

        spelled: dict[bytes | str, list[int]] = {}
        for token, text in tokens.vocabulary.items():
            if text and token != tokens.end and not (is_cut and text.translate(None, ALPHABET)):
                spelled.setdefault(text, []).append(token)
        self._vocabulary = Vocabulary(tokens.end, spelled)
        self._index = Index
        self._end = tokens.end

    def compile(self, points: int) -> Any:
        return self._index(regex("region", budget_of(points)), self._vocabulary)

    def begin(self, compiled: Any) -> Step:
        state = compiled.get_initial_state()

        def step(token: int) -> None:
            nonlocal state
            compiled.get_allowed_tokens(state)
            if token != self._end:
                state = compiled.get_next_state(state, token)

        return step


class XGrammar:
    """xgrammar, by EBNF."""

    def __init__(self, tokens: Tokens) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        texts = [b""] * LOGITS
        for token, text in tokens.vocabulary.items():
            texts[token] = text
        info = xgrammar.TokenizerInfo(texts, vocab_size=LOGITS, stop_token_ids=[tokens.end])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._bitmask = xgrammar.allocate_token_bitmask(1, LOGITS)

    def compile(self, points: int) -> Any:
        return self._compiler.compile_grammar(ebnf("region", budget_of(points)))

    def begin(self, compiled: Any) -> Step:
        matcher = self._xgrammar.GrammarMatcher(compiled)

        def step(token: int) -> None:
            matcher.fill_next_token_bitmask(self._bitmask)
            matcher.accept_token(token)

        return step


class LlGuidance:
    """llguidance, by a regular expression; it compiles when an answer begins."""

    def __init__(self, tokens: Tokens) -> None:
        import llguidance
        import llguidance.hf
        import llguidance.numpy

        self._llguidance = llguidance
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._bitmask = llguidance.numpy.allocate_token_bitmask(1, LOGITS)
        self._tokenizer = llguidance.LLTokenizer(
            tokens.tokenizer.to_str(), n_vocab=LOGITS, eos_token=tokens.end
        )

    def compile(self, points: int) -> str:
        grammar: str = self._llguidance.LLMatcher.grammar_from_regex(
            regex("region", budget_of(points))
        )
        self.begin(grammar)
        return grammar

    def begin(self, compiled: str) -> Step:
        matcher = self._llguidance.LLMatcher(self._tokenizer, compiled)

        def step(token: int) -> None:
            self._fill(matcher, self._bitmask, 0)
            matcher.consume_token(token)

        return step


@dataclass
class Times:
    vocabulary_ms: float
    compile_ms: list[float] = field(default_factory=list)
    warm_ms: list[float] = field(default_factory=list)
    first_step_us: list[float] = field(default_factory=list)
    step_us: list[float] = field(default_factory=list)


def budget_of(points: int) -> Budget:
    return Budget(max_tokens_for("region", points), max_points=points)


def makers(tokens: Tokens) -> dict[str, Callable[[], Backend]]:
    """The backends that are installed, by name."""
    found: dict[str, Callable[[], Backend]] = {
        "table": lambda: Table(tokens),
        "outlines_core_cut": lambda: Outlines(tokens, is_cut=True),
        SLOW: lambda: Outlines(tokens, is_cut=False),
    }
    if find_spec("xgrammar"):
        found["xgrammar"] = lambda: XGrammar(tokens)
    if find_spec("llguidance"):
        found["llguidance"] = lambda: LlGuidance(tokens)
    return found


def milliseconds(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.thread_time()
    made = call()
    return (time.thread_time() - began) * 1e3, made


def measure_round(
    backend: Backend, times: Times, points: int, answers: Sequence[list[int]]
) -> None:
    """One cold grammar, and the steps of all answers under it."""
    cold_ms, compiled = milliseconds(lambda: backend.compile(points))
    times.compile_ms.append(cold_ms)
    times.warm_ms.append(milliseconds(lambda: backend.begin(compiled))[0])
    times.first_step_us.append(step_us(backend, compiled, answers[0]))
    times.step_us += [step_us(backend, compiled, answer) for answer in answers]


def step_us(backend: Backend, compiled: object, answer: Sequence[int]) -> float:
    """Microseconds of a step, the mean over an answer."""
    step = backend.begin(compiled)
    began = time.thread_time()
    for token in answer:
        step(token)
    return (time.thread_time() - began) / len(answer) * 1e6


def measure(rounds: int, count: int, *, with_slow: bool) -> dict[str, Any]:
    tokens = Tokens.load(qwen_tokenizer_file())
    answers = [tokens.encode(text) for text in texts(count)]
    times: dict[str, Times] = {}
    backends: dict[str, Backend] = {}
    for name, make in makers(tokens).items():
        if name == SLOW and not with_slow:
            continue
        spent_ms, backends[name] = milliseconds(make)
        times[name] = Times(spent_ms)
    for number in range(rounds):
        for name, backend in backends.items():
            if name != SLOW or number == 0:
                measure_round(backend, times[name], POINTS + number, answers)
    table = summary(times["table"])
    return {
        "step_us": table["step_us"],
        "compile_ms": table["compile_ms"],
        "points": POINTS,
        "rounds": rounds,
        "answers": count,
        "tokens_per_answer": round(statistics.fmean(map(len, answers)), 1),
        "backends": {name: summary(one) for name, one in times.items()},
    }


def summary(times: Times) -> dict[str, Any]:
    return {
        "vocabulary_ms": round(times.vocabulary_ms, 1),
        "compile_ms": round(statistics.median(times.compile_ms), 3),
        "compile_ms_largest": round(max(times.compile_ms), 3),
        "warm_ms": round(statistics.median(times.warm_ms), 4),
        "first_step_us": round(statistics.median(times.first_step_us), 2),
        "step_us": round(statistics.median(times.step_us), 2),
        "step_us_largest_of_answers": round(max(times.step_us), 2),
        "compiled": len(times.compile_ms),
    }


def texts(count: int) -> list[str]:
    """Outlines of held-out scenes, those of at most ``POINTS`` vertices."""
    regions = (simplified(mask, EPSILON) for mask in scene_masks(LARGE_PX))
    fitting = (region for region in regions if 0 < sum(map(len, region.parts)) <= POINTS)
    return [format_region(region) + "." for region in islice(fitting, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="without the slowest backend")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    inputs = f"outlines of objects in held-out scenes, {LARGE_PX} px, epsilon {EPSILON}"
    figures = provenance(*PACKAGES, model="the tokenizer of Qwen2.5 alone", inputs=inputs)
    figures |= measure(
        rounds, QUICK_ANSWERS if options.quick else ANSWERS, with_slow=not options.quick
    )
    if options.json:
        print(json.dumps(figures))
        return
    for name, row in figures["backends"].items():
        print(f"{name:20} " + "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
