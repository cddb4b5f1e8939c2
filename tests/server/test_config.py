"""Settings: unknown names and values out of range are refused by name."""

import pytest

from simpleseg_server.config import ConfigError, Settings


def test_variables_are_read_and_overrides_come_first() -> None:
    environ = {"SIMPLESEG_MAX_PROMPTS": "3", "SIMPLESEG_PORT": "1234", "HOME": "/x"}
    settings = Settings.load(environ, port=9000, host=None)
    assert (settings.max_prompts, settings.port, settings.host) == (3, 9000, "127.0.0.1")


def test_variables_of_the_client_are_not_settings() -> None:
    environ = {"SIMPLESEG_BASE_URL": "http://127.0.0.1", "SIMPLESEG_API_KEY": "k"}
    assert Settings.load(environ) == Settings()


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"SIMPLESEG_MAX_PROMTS": "3"}, "unknown setting: max_promts"),
        ({"SIMPLESEG_MAX_PROMPTS": "0"}, "max_prompts"),
        ({"SIMPLESEG_MAX_PROMPTS": "many-4711"}, "max_prompts"),
        ({"SIMPLESEG_BODY_TIMEOUT_S": "nan"}, "body_timeout_s"),
        ({"SIMPLESEG_PORT": "65536"}, "port"),
    ],
)
def test_a_bad_setting_is_named_without_its_value(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        Settings.load(environ)
    assert "4711" not in str(caught.value)


def test_settings_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_default_limits_are_the_documented_ones() -> None:
    settings = Settings()
    assert settings.max_body_bytes == 34 * 2**20
    assert settings.max_image_bytes == 24 * 2**20
    assert settings.max_image_pixels == 50_000_000
    assert settings.max_prompts == 8
