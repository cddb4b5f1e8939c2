"""That nothing is sent to a forbidden address, by the kernel's count of packets in a network
namespace where every address would answer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .ssrf import FORBIDDEN_V4, vectors

ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


@pytest.fixture(scope="module")
def seen() -> Any:
    """What ``fetch_in_namespace.py`` prints."""
    try:
        probe = subprocess.run([*UNSHARE, "ip", "link"], capture_output=True, check=False)
        missing = probe.stderr.decode() if probe.returncode else ""
    except FileNotFoundError as error:
        missing = str(error)
    if missing:
        pytest.skip(f"no network namespaces here, or no iproute2: {missing.strip()}")
    command = [*UNSHARE, sys.executable, "-m", "tests.server.fetch_in_namespace"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.catalogue("D1", "D2", "D3", "D4", "D5", "D6", "D8", "D9")
def test_forbidden_urls_send_no_packet(seen: Any) -> None:
    forbidden = seen["forbidden"]
    assert len(forbidden["codes"]) == len(vectors()) >= 300
    assert set(forbidden["codes"]) == {"image_url_blocked", "image_url_invalid"}
    assert forbidden["reached"] == []
    assert forbidden["packets"] == 0


def test_public_urls_reach_their_address_and_nothing_else(seen: Any) -> None:
    public = seen["public"]
    assert public["codes"] == ["", ""]
    assert public["reached"] == ["9.9.9.9", "2620:fe::fe"]
    assert public["packets"] > 0


def test_without_the_judge_forbidden_addresses_are_reached(seen: Any) -> None:
    """The count would show what the judge let through."""
    unguarded = seen["unguarded"]
    unicast = {text for text in FORBIDDEN_V4 if int(text.partition(".")[0]) in range(1, 224)}
    assert unicast | {"::1", "fd00:ec2::254"} <= set(unguarded["reached"])
    assert unguarded["codes"].count("") >= 300
    assert unguarded["packets"] > len(unguarded["reached"])
