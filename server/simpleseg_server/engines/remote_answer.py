"""Reads the events of one answer from an OpenAI-compatible server as deltas."""

import time
from collections.abc import Iterator, Sequence

from simpleseg_server.engines.base import Delta, FinishReason, TokenLogprob, Usage
from simpleseg_server.engines.item_limit import ItemLimit, within
from simpleseg_server.engines.upstream_http import ChatEvent


class RemoteAnswer:
    """The answer so far. ``began`` is when the request came, ``asked`` when it was sent, both by
    ``time.perf_counter``.

    ``waits_for_counts`` False ends an answer that was cut at its limit at once, even where the
    server has not told yet how long the prompt is.
    """

    def __init__(
        self, limit: ItemLimit | None, began: float, asked: float, *, waits_for_counts: bool
    ) -> None:
        self._limit = limit
        self._began = began
        self._asked = asked
        self._waits_for_counts = waits_for_counts
        self._first_at: float | None = None
        self._end: FinishReason | None = None
        self._pieces = 0
        self._written = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens: int | None = None

    def read(self, event: ChatEvent) -> Delta | None:
        """What the event adds, None for nothing; the last delta where it completes the answer."""
        self._prompt_tokens = max(self._prompt_tokens, event.prompt_tokens)
        if event.cached_tokens is not None:
            self._cached_tokens = event.cached_tokens
        if self._end is not None:  # what comes now is beyond the limit, or counts tokens
            if self._limit is None or not self._limit.is_cut:
                self._completion_tokens = max(self._completion_tokens, event.completion_tokens)
            return self.last() if self._prompt_tokens else None
        text, tokens = self._spell(event)
        is_cut = self._limit is not None and self._limit.is_cut
        self._completion_tokens = max(
            self._written if is_cut else event.completion_tokens,
            self._written + (event.end == "stop" and not event.tokens),
        )
        self._end = "length" if is_cut else event.end
        if self._end is not None and (
            self._prompt_tokens or (is_cut and not self._waits_for_counts)
        ):
            return self.last(text, tokens)
        return Delta(text, tokens) if text or tokens else None

    @property
    def is_complete(self) -> bool:
        """Whether the end was seen: then the stream may break off without harm."""
        return self._end is not None

    def last(self, text: str = "", tokens: tuple[TokenLogprob, ...] = ()) -> Delta:
        """The last delta of a complete answer."""
        assert self._end is not None
        return Delta(text, tokens, self._end, self._usage())

    def _spell(self, event: ChatEvent) -> tuple[str, tuple[TokenLogprob, ...]]:
        if event.text or event.tokens:
            self._pieces += 1
            self._first_at = self._first_at or time.perf_counter()
        text, tokens, count = within(self._limit, spelled(event.text, event.tokens))
        self._written += count
        if event.end == "stop" and tokens and not tokens[-1].text:
            tokens = tokens[:-1]  # the end token
        return text, tokens

    def _usage(self) -> Usage:
        """Steps whose output came together count as one."""
        now = time.perf_counter()
        first_at = self._first_at or now
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            forward_passes=max(0, self._pieces - 1),
            queue_ms=(self._asked - self._began) * 1e3,
            prefill_ms=(first_at - self._asked) * 1e3,
            decode_ms=(now - first_at) * 1e3,
            cached_tokens=self._cached_tokens,
        )


def spelled(text: str, tokens: Sequence[TokenLogprob]) -> Iterator[tuple[str, TokenLogprob | None]]:
    """What each token adds to ``text``: a control token nothing, the last one all that is left.

    Servers name control tokens among the others, and cannot spell a part of a character.

    >>> [piece for piece, _ in spelled("ab", [TokenLogprob(t, 0.0) for t in ("a", "<|x|>", "b")])]
    ['a', '', 'b']
    """
    if not tokens and text:
        yield text, None
    for index, token in enumerate(tokens):
        is_last = index == len(tokens) - 1
        piece = text if is_last else token.text if text.startswith(token.text) else ""
        text = text[len(piece) :]
        yield piece, TokenLogprob(piece, token.logprob)
