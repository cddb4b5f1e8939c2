"""The tests see no settings of the user's."""

import pytest


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIMPLESEG_BASE_URL", "SIMPLESEG_API_KEY"):
        monkeypatch.delenv(name, raising=False)
