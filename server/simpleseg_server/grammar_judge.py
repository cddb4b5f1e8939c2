"""Whether a grammar that a client brings is one that the engine may be given."""

import asyncio
import hashlib
import json
import os
import sys
from importlib.util import find_spec

from cachetools import LRUCache

from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.engines.base import ClientGrammar
from simpleseg_server.sources import ENV_PREFIX, KEY_VARIABLES

MAX_KEPT = 64
"""Verdicts that are remembered, good and bad ones."""
COMPILE_S = 1.0
"""Time in which a grammar must be compiled."""


class GrammarJudge:
    """Lets a child process compile each grammar once before the engine sees it: what takes longer
    than ``seconds``, too much memory or crashes the compiler is refused. For one event loop.

    Raises ConfigError where grammars are allowed and the compiler, xgrammar, is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.client_grammars and find_spec("xgrammar") is None:
            raise ConfigError("client_grammars: needs the package xgrammar (extra grammars)")
        self.seconds = COMPILE_S
        self._verdicts: LRUCache[bytes, bool] = LRUCache(MAX_KEPT)
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def allows(self, grammar: ClientGrammar) -> bool:
        """Whether it compiles; the first one waits until the compiler is loaded, seconds."""
        fields = {"kind": grammar.kind, "value": grammar.value, "seconds": self.seconds}
        asked = json.dumps(fields).encode()
        digest = hashlib.sha256(asked).digest()
        async with self._lock:
            found = self._verdicts.get(digest)
            if found is None:
                found = self._verdicts[digest] = await self._compiled(asked)
        return found

    async def _compiled(self, asked: bytes) -> bool:
        child = await self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(asked + b"\n")
            await child.stdin.drain()
            answer = await asyncio.wait_for(child.stdout.readline(), self.seconds + 10)
        except (OSError, TimeoutError):
            answer = b""
        except asyncio.CancelledError:
            self._kill()  # its answer would be taken for that to the next question
            raise
        if not answer:
            self._kill()
        return answer == b"ok\n"

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is not None and self._child.returncode is None:
            return self._child
        hidden = (*KEY_VARIABLES, ENV_PREFIX)
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "simpleseg_server.grammar_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
        )
        assert self._child.stdout is not None
        try:
            await self._child.stdout.readline()
        except asyncio.CancelledError:
            self._kill()
            raise
        return self._child

    def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
        self._child = None

    async def close(self) -> None:
        """End the child."""
        child = self._child
        self._kill()
        if child is not None:
            await child.wait()
