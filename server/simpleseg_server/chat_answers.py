"""Answers in the shapes of OpenAI's chat: one object, or chunks while the engine writes."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from simpleseg.chat_answer_schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatUsage,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    PromptTokensDetails,
    TokenLogprob,
)
from simpleseg.chat_schema import ChatRequest
from simpleseg.schema import FinishReason, Result
from simpleseg_server.answers import Answer, Judged
from simpleseg_server.engines import base
from simpleseg_server.fingerprint import system_fingerprint
from simpleseg_server.jobs import Job, Outcome
from simpleseg_server.pipeline import Segmenter
from simpleseg_server.progress import Progress
from simpleseg_server.telling import told_by

Tell = Callable[[ChatChunk], None]

_LEAST_LOGPROB = -9999.0
"""OpenAI's number for a token that could hardly have been chosen; JSON has no infinity."""


@dataclass(frozen=True)
class Chat:
    """A chat request on its way."""

    id: str
    request: ChatRequest
    job: Job
    segmenter: Segmenter

    @classmethod
    def of(cls, request: ChatRequest, job: Job, segmenter: Segmenter) -> "Chat":
        return cls(f"chatcmpl-{secrets.token_hex(12)}", request, job, segmenter)

    async def complete(self) -> ChatCompletion:
        """The whole answer. Raises ApiError where the engine failed on any choice."""

        def follow(index: int) -> Progress:
            return self.segmenter.progress(self.job, index)

        outcomes, answers = await self._outcomes(follow)
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.job.created,
            model=self.segmenter.model_of(self.job),
            system_fingerprint=system_fingerprint(self.segmenter.engine.capabilities),
            choices=[
                self._choice(index, answer, outcome.result)
                for index, (answer, outcome) in enumerate(zip(answers, outcomes, strict=True))
            ],
            usage=_usage(answers),
        )

    async def stream(self) -> AsyncGenerator[ChatChunk, None]:
        """The chunks of all choices as they come. Raises what ``complete`` raises, at the latest
        before the last chunk; closing it cancels the engine."""
        async with aclosing(told_by(self._run)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _run(self, tell: Tell) -> None:
        def follow(index: int) -> _ChoiceFollower:
            return _ChoiceFollower(self, index, tell)

        _, answers = await self._outcomes(follow)
        if self.wants_usage:
            tell(self.chunk([], _usage(answers)))

    async def _outcomes(
        self, follow: "Callable[[int], Progress | _ChoiceFollower]"
    ) -> tuple[Sequence[Outcome], list[Answer]]:
        outcomes = await self.segmenter.outcomes(self.job, follow)
        chosen = [outcome.answers.chosen for outcome in outcomes]
        answers = [answer for answer in chosen if isinstance(answer, Answer)]
        if len(answers) < len(outcomes):
            raise self.segmenter.failure(outcomes)
        self.segmenter.conclude(self.job, outcomes)
        return outcomes, answers

    @property
    def wants_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and bool(options.include_usage)

    def chunk(self, choices: list[ChunkChoice], usage: ChatUsage | None = None) -> ChatChunk:
        chunk = ChatChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.job.created,
            model=self.segmenter.model_of(self.job),
            system_fingerprint=system_fingerprint(self.segmenter.engine.capabilities),
            choices=choices,
        )
        return chunk.model_copy(update={"usage": usage}) if self.wants_usage else chunk

    def logprobs(self, tokens: Sequence[base.TokenLogprob]) -> ChoiceLogprobs | None:
        if not self.request.logprobs:
            return None
        return ChoiceLogprobs(content=[_logprob(token) for token in tokens], refusal=None)

    def _choice(self, index: int, answer: Answer, result: Result) -> Choice:
        return Choice(
            index=index,
            message=AnswerMessage(
                role="assistant", content=answer.text, refusal=None, segmentation=result
            ),
            logprobs=self.logprobs(answer.tokens),
            finish_reason=_finish_reason(answer.finish_reason),
        )


class _ChoiceFollower:
    """Tells one choice of a stream: its role with the first piece, then text, then its result."""

    def __init__(self, chat: Chat, index: int, tell: Tell) -> None:
        self._chat = chat
        self._index = index
        self._tell = tell
        self._progress = chat.segmenter.progress(chat.job, index)
        self._has_role = False

    def read(self, delta: base.Delta) -> None:
        self._progress.read(delta)
        logprobs = self._chat.logprobs(delta.tokens) if delta.tokens else None
        if delta.text or logprobs is not None:
            self._send(ChoiceDelta(content=delta.text), logprobs)

    def finish(self) -> None:
        self._progress.finish()

    def done(self, answer: Answer, judged: Judged) -> None:
        self._send(
            ChoiceDelta(segmentation=judged.result), None, _finish_reason(answer.finish_reason)
        )

    def _send(
        self,
        delta: ChoiceDelta,
        logprobs: ChoiceLogprobs | None,
        reason: Literal["stop", "length"] | None = None,
    ) -> None:
        if not self._has_role:
            self._has_role = True
            self._send(ChoiceDelta(role="assistant", content=""), None)
        choice = ChunkChoice(
            index=self._index, delta=delta, logprobs=logprobs, finish_reason=reason
        )
        self._tell(self._chat.chunk([choice]))


def _finish_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """OpenAI's word; it has none for a deadline."""
    return "stop" if reason == "stop" else "length"


def _logprob(token: base.TokenLogprob) -> TokenLogprob:
    is_whole = "\ufffd" not in token.text
    return TokenLogprob(
        token=token.text,
        logprob=token.logprob if token.logprob > _LEAST_LOGPROB else _LEAST_LOGPROB,
        bytes=list(token.text.encode()) if is_whole else None,
        top_logprobs=[],
    )


def _usage(answers: Sequence[Answer]) -> ChatUsage:
    prompt_tokens = max(answer.usage.prompt_tokens for answer in answers)
    completion_tokens = sum(answer.usage.completion_tokens for answer in answers)
    cached = [answer.usage.cached_tokens for answer in answers]
    known = [count for count in cached if count is not None]
    details = PromptTokensDetails(cached_tokens=min(known)) if len(known) == len(cached) else None
    return ChatUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        **({} if details is None else {"prompt_tokens_details": details}),
    )
