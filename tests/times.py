"""How many times their usual size the slow tests run with what chance makes: ``FUZZ_TIMES``."""

import os

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
