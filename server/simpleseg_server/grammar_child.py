"""Compiles grammars that clients bring, in a process that nobody else needs.

``python -m simpleseg_server.grammar_child`` writes a line once it is ready, then answers each line
of JSON on standard input, ``{"kind": "regex", "value": "a+", "seconds": 1}``, with ``ok`` or
``no``. Each grammar is compiled in a fork of its own with little memory, which is killed where it
is not done in time: what hangs, crashes or fills the memory takes nothing along.
"""

import json
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 512 * 2**20
"""What compiling a grammar may take beyond what the imports have."""


def _compiler() -> Any:
    """Compiles for a vocabulary of single bytes: what blows up, blows up in the grammar."""
    import xgrammar

    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    tokens = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    return xgrammar.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)


def _compile(compiler: Any, kind: str, value: Any) -> None:
    """Raises whatever the library does for a grammar that is none."""
    if kind == "json":
        compiler.compile_json_schema(value if isinstance(value, str) else json.dumps(value))
    elif kind == "regex":
        compiler.compile_regex(value)
    elif kind == "grammar":
        compiler.compile_grammar(value)
    elif kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in value)
        compiler.compile_grammar(f"root ::= {choices}")


def _in_fork(compiler: Any, kind: str, value: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))  # where nobody is left to kill it
    try:
        _compile(compiler, kind, value)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _is_compiled(compiler: Any, asked: dict[str, Any]) -> bool:
    child = os.fork()
    if child == 0:
        _in_fork(compiler, asked["kind"], asked["value"])
    descriptor = os.pidfd_open(child)
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        if not ended.poll(asked["seconds"] * 1000):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(descriptor)
    return status == 0


def main() -> None:
    compiler = _compiler()
    print("ready", flush=True)
    for line in sys.stdin:
        print("ok" if _is_compiled(compiler, json.loads(line)) else "no", flush=True)


if __name__ == "__main__":
    main()
