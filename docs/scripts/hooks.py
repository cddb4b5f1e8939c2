"""What mkdocs runs: fills in those parts of the pages that are read off the code.

A line ``<!-- generated: NAME -->`` of a page becomes what the function of that name gives.
"""

import re
from collections.abc import Callable
from typing import Any

from reference_cli import command_line
from reference_errors import errors
from reference_http import http_api
from reference_metrics import metrics

PARTS: dict[str, Callable[[], str]] = {
    "http-api": http_api,
    "command-line": command_line,
    "errors": errors,
    "metrics": metrics,
}
_MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_NOT_RUN = re.compile(r"^<!-- not run: .+? -->\n", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    filled = _MARK.sub(lambda match: PARTS[match[1]](), markdown)
    return _NOT_RUN.sub("", filled)
