"""The tokens that probably follow, for the model to verify in one forward pass (speculation).

A draft is text turned into tokens. The text is the structure between numbers, which is nearly
certain, and digits guessed by geometry, which are often right in front. The text becomes tokens by
the longest match in the vocabulary. On Qwen's vocabulary that gives exactly the tokens of its own
tokenizer, because no token crosses the borders at which it splits text (a test holds this against
the real one); where another tokenizer differs, drafts are refused and cost nothing but their place.
Output never depends on a draft: greedy decoding takes only what the model would have written.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Vertex = tuple[float, float]
"""x and y in thousandths, as the text writes them."""

Predictor = Callable[[Sequence[Vertex]], Vertex]
"""The vertices of a part so far, at least one, to the next one."""

_TAIL_TOKENS = 72  # five vertices: what the predictors look at
_FIRST_VERTEX = (300.0, 300.0)  # rings begin at their upper left
_START = b"[[[0."
_BETWEEN_NUMBERS = b", 0."
_BETWEEN_ITEMS = b"], [0."
_BETWEEN_PARTS = b"]], [[0."
_SAMPLE = b"[[[0.000, 0.000], [0.000, 0.000]], [[0.000, 0.000]]]. [[0.0, 0.00]]. []."
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_ITEM = re.compile(rb"\[([01]\.\d+(?:, [01]\.\d+)+)\]")
_DIGITS = re.compile(rb"0\.(\d{0,3})$")


def last_vertex(vertices: Sequence[Vertex]) -> Vertex:
    """The vertex before: right in its first digit more often than not.

    >>> last_vertex([(100, 200), (300, 400)])
    (300, 400)
    """
    return vertices[-1]


def turn_again(vertices: Sequence[Vertex]) -> Vertex:
    """The last step turned once more by the last turn, nine tenths as long as the shorter of the
    last two steps; the vertex before where there are fewer than three.

    Better than ``last_vertex`` on outlines of 480-pixel masks, worse on those of 128-pixel masks
    simplified so little that pixel stairs remain (``benchmarks/drafting.py`` compares the two).

    >>> turn_again([(100, 100), (200, 100), (200, 200)])
    (110.0, 200.0)
    """
    if len(vertices) < 3:
        return vertices[-1]
    a, b, c = (complex(*vertex) for vertex in vertices[-3:])
    before, last = b - a, c - b
    if not before or not last:
        return vertices[-1]
    direction = last * last / before
    predicted = c + 0.9 * min(abs(before), abs(last)) * direction / abs(direction)
    return round(predicted.real, 6), round(predicted.imag, 6)


@dataclass
class _Pen:
    """Where the answer stands: whole vertices of this part, whole numbers of this item, digits of
    the number under way (None: it is finished), the text due before anything else, and where the
    item under way is guessed to lie."""

    vertices: list[Vertex]
    item: list[int]
    digits: bytes | None
    due: bytes = b""
    guess: Vertex | None = None


class Drafter:
    """Guesses what follows an answer so far; made once per loaded model, then shared.

    ``max_draft`` bounds the tokens of a draft; 8 hold the rest of one number and most of the next.
    ``grid_hw`` is the height and width in pixels of the masks that the model was trained on, where
    they all had one size: then coordinates are multiples of a pixel, and the first two digits
    nearly settle the third. ``digits`` is how many are guessed in each number: 0 drafts structure
    only, 3 goes on to the next number. Where the vocabulary has tokens of several digits, a number
    is guessed whole or not at all: a part of it would be another token. ``final_dot`` says whether
    the model's answers end with a dot.

    >>> vocabulary = dict(enumerate([b"[[", b"[", b"0", b".", b",", b" ", b"],", b"1"]))
    >>> drafter = Drafter(vocabulary, digits=0)
    >>> [vocabulary[token] for token in drafter.draft([0, 1, 2, 3, 7, 7, 7])]
    [b',', b' ', b'0', b'.']
    """

    def __init__(
        self,
        vocabulary: Mapping[int, bytes],
        max_draft: int = 8,
        *,
        grid_hw: tuple[int, int] | None = None,
        digits: int = 3,
        predict: Predictor = turn_again,
        final_dot: bool = True,
    ) -> None:
        self._text = {t: b for t, b in vocabulary.items() if _occurs(b)}
        self._token = {text: token for token, text in reversed(self._text.items())}
        self._longest = max(map(len, self._token))
        self._max_draft = max_draft
        groups_digits = any(len(text) > 1 and text.isdigit() for text in self._token)
        self._digits = 0 if groups_digits and digits < 3 else digits
        self._end = b"." if final_dot else b""
        self._predict = predict
        self._grid_xy = None if grid_hw is None else (_grid(grid_hw[1]), _grid(grid_hw[0]))

    def draft(self, answer_token_ids: Sequence[int]) -> list[int]:
        """At most ``max_draft`` tokens that may follow, perhaps none; some tens of microseconds.

        An id that no answer can hold counts as nothing.
        """
        text = b"".join(self._text.get(t, b"") for t in answer_token_ids[-_TAIL_TOKENS:])
        head = b"".join(self._text.get(t, b"") for t in answer_token_ids[:3])
        return self._tokens(self._continuation(head, text))

    def _tokens(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        at = 0
        while at < len(text) and len(tokens) < self._max_draft:
            for length in range(min(self._longest, len(text) - at), 0, -1):
                token = self._token.get(text[at : at + length])
                if token is not None:
                    break
            else:
                break
            tokens.append(token)
            at += length
        return tokens

    def _continuation(self, head: bytes, text: bytes) -> bytes:
        if text == b"[" and b"[[" in self._token:
            return b"0."  # a list would have begun with its natural token
        if _START.startswith(text):
            return _START[len(text) :]
        is_bare = head[:1] == b"[" and head[1:2] in (b"0", b"1")
        if text.endswith(b"]" if is_bare else b"]]"):
            is_open = head.startswith(b"[[[") and not text.endswith(b"]]]")
            return b"]" + self._end if is_open else self._end
        pen = _read(text)
        return b"" if pen is None else self._write(pen, _numbers_per_item(head, text), is_bare)

    def _write(self, pen: _Pen, numbers_per_item: int, is_bare: bool) -> bytes:
        """Text from the pen's place on, until it holds enough for a draft or the guess ends."""
        written = pen.due
        while len(written) < self._max_draft + 2:  # some two structural tokens are two bytes
            if pen.digits is not None:
                guess = self._guess(pen) if numbers_per_item == 2 else None
                number, is_whole = self._number(pen.digits, guess, len(pen.item))
                written += number[len(pen.digits) :]
                if not is_whole:
                    break
                pen.item.append(_thousandths(number))
            pen.digits = b""
            if len(pen.item) < numbers_per_item:
                written += _BETWEEN_NUMBERS
            elif is_bare:
                return written + b"]" + self._end
            else:
                written += _BETWEEN_ITEMS
                pen.vertices.append((pen.item[0], pen.item[1]))
                pen.item, pen.guess = [], None
        return written

    def _guess(self, pen: _Pen) -> Vertex | None:
        if pen.guess is None and self._digits:
            pen.guess = self._predict(pen.vertices) if pen.vertices else _FIRST_VERTEX
        return pen.guess

    def _number(self, known: bytes, guess: Vertex | None, axis: int) -> tuple[bytes, bool]:
        """The digits of a number of which some are known, and whether it ends with them."""
        if len(known) == 3:
            return known, True
        if guess is None:
            return known, False
        digits = b"%03d" % self._nearest(guess[axis], known, axis)
        if self._digits < 3:
            return digits[: max(self._digits, len(known))], False
        least = max(1, len(known))
        return digits[:least] + digits[least:].rstrip(b"0"), True

    def _nearest(self, expected: float, known: bytes, axis: int) -> int:
        """The number of thousandths nearest to the expected one that begins with known digits."""
        width = (1000, 100, 10)[len(known)]
        first = int(known or b"0") * width
        last = first + width - 1
        if self._grid_xy is not None:
            grid = self._grid_xy[axis]
            low, high = bisect_left(grid, first), bisect_right(grid, last)
            if low < high:
                at = bisect_left(grid, expected, low, high)
                around = grid[max(at - 1, low) : min(at + 1, high)]
                return min(around, key=lambda value: abs(value - expected))
        return min(max(round(expected), first), last)


def _occurs(text: bytes) -> bool:
    """Whether a token's text can be part of an answer."""
    return bool(text) and text.translate(_DIGITS_TO_ZERO) in _SAMPLE


def _grid(pixels: int) -> list[int]:
    """Thousandths of the pixel edges; 1000 is left out, for it is not written ``0.``."""
    return sorted({round(1000 * edge / pixels) for edge in range(pixels)} - {1000})


def _thousandths(digits: bytes) -> int:
    return int(digits.ljust(3, b"0"))


def _read(text: bytes) -> _Pen | None:
    """Where a text of the language stands; None where nothing is known to follow."""
    part = text[max(text.rfind(b"[["), 0) :]
    items = [_numbers(match) for match in _ITEM.findall(part)[-3:]]
    vertices: list[Vertex] = [(item[0], item[1]) for item in items]
    opening, closing = text.rfind(b"["), text.rfind(b"]")
    item = _numbers(text[opening + 1 :].rpartition(b",")[0]) if opening > closing else []
    under_way = _DIGITS.search(text)
    if under_way is not None:
        return _Pen(vertices, item, under_way[1])
    if text.endswith(b"1.0"):
        return _Pen(vertices, [*item, 1000], None)
    due = _due(text)
    if due is None:
        return None
    if due in (b".0", b"0"):  # the rest of 1.0
        return _Pen(vertices, [*item, 1000], None, due)
    return _Pen([] if text.endswith((b"]],", b"]], ", b"]], [")) else vertices, item, b"", due)


def _numbers(text: bytes) -> list[int]:
    return [round(1000 * float(number)) for number in text.split(b", ") if number]


def _due(text: bytes) -> bytes | None:
    """The rest of the separator that the text ends within."""
    if text.endswith((b"[0", b" 0")):
        return b"."
    if text.endswith((b"[1", b" 1")):
        return b".0"
    if text.endswith((b"[1.", b" 1.")):
        return b"0"
    if text.endswith(b"[]"):
        return None
    if text.endswith(b"]") and not text.endswith(b"]]"):
        return _BETWEEN_ITEMS[1:]
    for separator in (_BETWEEN_PARTS, _BETWEEN_ITEMS, _BETWEEN_NUMBERS):
        for length in range(len(separator) - 2, 0, -1):
            if text.endswith(separator[:length]):
                return separator[length:]
    return b"0." if text.endswith(b"[[") or text == b"[" else None


def _numbers_per_item(head: bytes, text: bytes) -> int:
    """2 for vertices and points, 4 for boxes; a box where a list has not told yet."""
    if head.startswith(b"[[["):
        return 2
    whole = _ITEM.search(text)
    return 4 if whole is None else whole[1].count(b",") + 1


@dataclass(frozen=True)
class PassCount:
    """What drafting made of an answer: its tokens, the forward passes that wrote them (the
    prefill's own included), tokens drafted and tokens of drafts that were right."""

    tokens: int
    passes: int
    drafted: int
    accepted: int

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes

    def __add__(self, other: "PassCount") -> "PassCount":
        return PassCount(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


def count_passes(draft: Callable[[Sequence[int]], list[int]], answer: Sequence[int]) -> PassCount:
    """Forward passes of greedy decoding that writes ``answer`` (end token included): the prefill
    gives the first token, each later pass the right beginning of a draft and one token more.

    >>> count_passes(lambda so_far: [7, 7], [5, 7, 7, 8, 7])
    PassCount(tokens=5, passes=3, drafted=4, accepted=3)
    """
    done, passes, drafted, accepted = 1, 1, 0, 0
    while done < len(answer):
        guess = draft(answer[:done])
        right = 0
        for guessed, actual in zip(guess, answer[done:], strict=False):
            if guessed != actual:
                break
            right += 1
        passes, drafted, accepted = passes + 1, drafted + len(guess), accepted + right
        done += right + 1
    return PassCount(len(answer), passes, drafted, accepted)
