"""Section C: the grammars of clients where the operator allows them, compiled by a child."""

import asyncio
from dataclasses import replace
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.engines.base import ClientGrammar
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.grammar_judge import MAX_KEPT, GrammarJudge

from .canary_server import reply
from .test_c_parameters import CHAT, PICTURE

ALLOWED = Settings(client_grammars=True)
GOOD = (
    ClientGrammar("regex", "a+"),
    ClientGrammar("json", {"type": "object", "properties": {"a": {"type": "integer"}}}),
    ClientGrammar("json_object", True),
    ClientGrammar("choice", ["yes", 'a "quoted" one\n']),
    ClientGrammar("grammar", 'root ::= "a" root | "b"'),
)
NESTED: Any = {"type": "object"}
for _ in range(200):
    NESTED = {"type": "object", "properties": {"a": NESTED}, "required": ["a"]}
BAD = (
    ClientGrammar("regex", "(" * 8000 + ")" * 8000),
    ClientGrammar("regex", "(a"),
    ClientGrammar("grammar", "root ::= " + "(" * 8000 + '"a"' + ")" * 8000),
    ClientGrammar("grammar", 'root ::= nothing "a"'),
    ClientGrammar("grammar", ""),
    ClientGrammar("json", {"$ref": "http://127.0.0.1/schema"}),
    ClientGrammar("json", {"type": "no such type"}),
    ClientGrammar("json", "{"),
    ClientGrammar("choice", []),
)


ENDLESS = (
    ClientGrammar("grammar", 'root ::= root "a" | root'),
    ClientGrammar("grammar", "root ::= root"),
    ClientGrammar("regex", "(a+)+b"),
    ClientGrammar("regex", "a{1,100000}b{1,100000}"),
    ClientGrammar("regex", "(((a{1,1000}){1,1000}){1,1000}){1,1000}"),
    ClientGrammar("json", {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    ClientGrammar("json", NESTED),
)
"""Whether they are taken is the compiler's business; that it ends is ours."""


def test_C2_hostile_grammars() -> None:
    """They are refused, good ones are not, and the child outlives all of them."""

    async def run() -> None:
        judge = GrammarJudge(ALLOWED)
        try:
            await _judge_all(judge)
        finally:
            await judge.close()

    asyncio.run(run())


async def _judge_all(judge: GrammarJudge) -> None:
    judge.seconds = 10.0  # others may keep the machine busy
    for grammar in GOOD:
        assert await judge.allows(grammar), grammar
    assert judge._child is not None
    child = psutil.Process(judge._child.pid)
    for grammar in BAD:
        assert not await judge.allows(grammar), str(grammar)[:80]
    for grammar in ENDLESS:
        await asyncio.wait_for(judge.allows(grammar), 60)
    assert await judge.allows(ClientGrammar("regex", "b+"))
    judge.seconds = 0.000_001  # less than any grammar takes
    assert not await judge.allows(ClientGrammar("json", NESTED))
    assert child.children() == []
    for number in range(MAX_KEPT):
        await judge.allows(ClientGrammar("regex", f"a{number}"))
    assert len(judge._verdicts) == MAX_KEPT
    assert judge._child.pid == child.pid
    assert child.is_running()


def test_C2_the_server_says_so_and_the_engine_never_hears_of_it() -> None:
    engine = ScriptedEngine(reply)
    engine._capabilities = replace(engine.capabilities, client_grammars=True)
    content = [PICTURE, {"type": "text", "text": "What is it?"}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    with TestClient(create_app(ALLOWED, engine)) as client:
        for regex, status in (("(a", 422), ("a" * 20_000, 422), ("a+", 200)):
            asked = {**body, "structured_outputs": {"regex": regex}}
            answer = client.post(CHAT, json=asked)
            assert answer.status_code == status
            if status == 422:
                assert answer.json()["error"]["code"] == "grammar_rejected"
                assert engine.requests == []


def test_C2_without_the_compiler_no_grammar_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpleseg_server.grammar_judge.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="xgrammar"):
        GrammarJudge(ALLOWED)
    GrammarJudge(Settings())
