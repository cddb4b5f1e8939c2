"""Where tests with the real vLLM, and with Ray, run: in an environment that has it, and nowhere
else."""

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``vllm`` or ``ray`` are skipped without it. What these and torchvision warn of
    is not ours, so their warnings are no errors."""
    for item in items:
        for package in ("vllm", "ray"):
            if item.get_closest_marker(package) is None:
                continue
            item.add_marker(pytest.mark.filterwarnings("default"))
            if find_spec(package) is None:
                reason = f"{package} is not installed; `make test-{package}` installs it"
                item.add_marker(pytest.mark.skip(reason))
