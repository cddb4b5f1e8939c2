"""Where tests with the real vLLM run: in an environment that has it, and nowhere else."""

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``vllm`` are skipped without vLLM. What vLLM and torchvision warn of on import
    is not ours, so their warnings are no errors."""
    for item in items:
        if item.get_closest_marker("vllm") is None:
            continue
        item.add_marker(pytest.mark.filterwarnings("default"))
        if find_spec("vllm") is None:
            reason = "vllm is not installed; `make test-vllm` installs it"
            item.add_marker(pytest.mark.skip(reason))
