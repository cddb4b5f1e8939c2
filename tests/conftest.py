"""Where tests with the real vLLM, and with Ray, run; which rows of the catalogue of faults tests
prove; and that no test makes a server answer as if it were at fault, but where that is meant."""

from collections.abc import Generator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from . import faults
from .reliability.catalogue import proven, report

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")  # how fast it is, and what else it does, proves nothing

faults.watch()
_PROVEN = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "print which rows of tests/reliability/catalogue.toml the collected tests prove"
    parser.addoption("--catalogue", action="store_true", help=text)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``vllm`` or ``ray`` are skipped without it. What these and torchvision warn of
    on import is not ours, so their warnings are no errors."""
    config.stash[_PROVEN] = proven(items)
    for item in items:
        for package in ("vllm", "ray"):
            if item.get_closest_marker(package) is None:
                continue
            item.add_marker(pytest.mark.filterwarnings("default"))
            if find_spec(package) is None:
                reason = f"{package} is not installed; `make test-{package}` installs it"
                item.add_marker(pytest.mark.skip(reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with faults.none_seen(are_meant=item.get_closest_marker("server_fault") is not None):
        yield


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--catalogue") and _PROVEN in config.stash:
        terminalreporter.section("catalogue of faults")
        for line in report(config.stash[_PROVEN]):
            terminalreporter.line(line)
