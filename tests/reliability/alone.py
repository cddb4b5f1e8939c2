"""A server asked on a machine that reaches nobody: ``python -m tests.reliability.alone FOLDER``."""

import sys
from pathlib import Path

from .canary import started, unharmed

with started(Path(sys.argv[1])) as canary, unharmed(canary):
    assert canary.segment().status_code == 200
print("answered")
