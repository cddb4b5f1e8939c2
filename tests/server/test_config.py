"""Settings: one set of names for options, variables and file; bad ones are refused by name."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg_server import options
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.sources import load, option_name

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_come_before_variables_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1\nmax_prompts = 2\nmax_points = 5\ndraft = false\n")
    environ = {"SIMPLESEG_MAX_PROMPTS": "3", "SIMPLESEG_PORT": "2", "HOME": "/x"}
    loaded = load(environ, file, {"port": "9000", "host": None})
    settings = loaded.settings
    assert (settings.port, settings.max_prompts, settings.max_points) == (9000, 3, 5)
    assert (settings.host, settings.draft) == ("127.0.0.1", False)
    assert loaded.origins == {
        "port": "--port",
        "max_prompts": "SIMPLESEG_MAX_PROMPTS",
        "max_points": f"{file}:3",
        "draft": f"{file}:4",
    }


def test_a_variable_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "max_prompts = 2")
    assert load({"SIMPLESEG_CONFIG": str(file)}).settings.max_prompts == 2


def test_the_address_for_clients_is_no_setting() -> None:
    assert load({"SIMPLESEG_BASE_URL": "http://127.0.0.1"}).settings == Settings()


def test_keys_come_from_both_variables_and_never_show() -> None:
    loaded = load(
        {"SIMPLESEG_API_KEYS": "alpha-4711, beta-4711", "SIMPLESEG_API_KEY": "gamma-4711"}
    )
    keys = [key.get_secret_value() for key in loaded.settings.api_keys]
    assert keys == ["alpha-4711", "beta-4711", "gamma-4711"]
    assert "4711" not in loaded.render() + repr(loaded) + loaded.settings.model_dump_json()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SIMPLESEG_MAX_PROMTS": "3"}, "unknown setting: max_promts (did you mean max_prompts?)"),
        ({"SIMPLESEG_MAX_PROMPTS": "0"}, "SIMPLESEG_MAX_PROMPTS: max_prompts: "),
        ({"SIMPLESEG_MAX_PROMPTS": "many-4711"}, "max_prompts"),
        ({"SIMPLESEG_BODY_TIMEOUT_S": "nan"}, "body_timeout_s"),
        ({"SIMPLESEG_PORT": "65536"}, "port"),
        ({"SIMPLESEG_LOG_FORMAT": "xml-4711"}, "log_format"),
        ({"SIMPLESEG_API_KEYS": "a-4711,"}, "api_keys: a key is"),
        ({"SIMPLESEG_API_KEY": ""}, "SIMPLESEG_API_KEY: api_keys: a key is"),
        ({"SIMPLESEG_API_KEY": "zwölf-4711"}, "api_keys: a key is"),
        ({"SIMPLESEG_REQUESTS_PER_MINUTE": "3"}, "requests_per_minute counts by API key"),
        ({"SIMPLESEG_IMAGE_URL_HOSTS": "a"}, "image_url_hosts lists hosts, and image_urls is off"),
        (
            {"SIMPLESEG_IMAGE_URLS": "listed"},
            "image_urls is listed, and image_url_hosts",
        ),
        ({"SIMPLESEG_IMAGE_URL_HOSTS": "https://x-4711/"}, "a host reads host, host:port or"),
        ({"SIMPLESEG_IMAGE_URL_HOSTS": "a:0"}, "image_url_hosts: a host reads"),
        ({"SIMPLESEG_CONFIG": "/nowhere.toml"}, "/nowhere.toml: No such file"),
    ],
)
def test_a_bad_setting_is_named_without_its_value(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert words in str(caught.value)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 1\nmax_promts = 3", ":2: unknown setting: max_promts"),
        ("[limits]\nmax_prompts = 3", ":1: unknown setting: limits"),
        ("a = 1\nb = 2", ":2: unknown setting: b"),
        ("max_prompts = 'many-4711'", ":1: max_prompts: "),
        ("api_keys = 'x'\napi_keys = 'y'", "Cannot overwrite a value"),
        ("port = = 2", "at line 1"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, written(tmp_path, text))
    assert words in str(caught.value)
    assert "settings.toml" in str(caught.value)
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


def test_every_setting_is_an_option_with_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["serve", "--help"]).stdout
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} has no docstring"
        assert f"--{option_name(name)} " in shown
    for group in (*options.GROUPS, options.OTHERS):
        assert group in shown
    grouped = {name for names in options.GROUPS.values() for name in names}
    assert grouped <= Settings.model_fields.keys()
    assert "35651584 (34 MiB)" in shown


def test_the_documented_table_is_the_generated_one() -> None:
    command = "python -m simpleseg_server.options > docs/settings.md"
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == options.table(), command


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_option_reaches_its_setting(name: str, tmp_path: Path) -> None:
    """Each option, with a value unlike the default, changes its setting and no other."""
    (tmp_path / "keys.toml").write_text('[alice]\nkey = "a"')
    arguments, expected = _sample(name, str(tmp_path / "keys.toml"))
    if name in ("requests_per_minute", "max_concurrent_requests"):
        arguments += ["--api-key", "k"]
    if name == "max_pixels_in_flight":
        arguments += ["--max-image-pixels", "1000"]
    if name == "default_max_points":
        arguments += ["--max-points", "4000"]
    if name == "image_url_hosts":
        arguments += ["--image-urls", "public"]
    if name.startswith("label_studio"):
        arguments += ["--image-urls", "listed", "--image-url-hosts", "ls.internal:8080"]
    if name == "label_studio_token":
        arguments += ["--label-studio-url", "http://ls.internal:8080"]
    run = CliRunner().invoke(app, ["serve", "--check-config", *arguments], catch_exceptions=False)
    given = [line for line in run.stdout.splitlines() if f"# --{option_name(name)}" in line]
    assert run.exit_code == 0, run.output
    (line,) = given
    assert tomllib.loads(line) == {name: expected}


def _sample(name: str, file: str) -> tuple[list[str], Any]:
    option, default = f"--{option_name(name)}", Settings.model_fields[name].default
    if isinstance(default, bool):
        return [option.replace("--", "--no-", 1) if default else option], not default
    if name in ("api_keys", "upstream_api_key"):
        return [option, "a", option, "b"], ["**********"] * 2
    if name == "enable":
        tools = ["moondream", "roboflow", "label-studio"]
        return [option, "moondream, roboflow", option, "label-studio"], tools
    if name == "label_studio_url":
        return [option, "http://ls.internal:8080/"], "http://ls.internal:8080"
    if name == "label_studio_token":
        return [option, "a"], "**********"
    if name == "open_paths":
        return [option, "/a", option, "/b"], ["/a", "/b"]
    if name == "image_url_hosts":
        return [option, "a", option, "b:9000"], ["a", "b:9000"]
    if name in ("upstreams", "lora"):
        return [option, "http://a,2", option, "http://b"], ["http://a,2", "http://b"]
    choices = options.value_name(name).split("|")
    if len(choices) > 1:
        return [option, choices[-1]], choices[-1]
    kind = options.value_name(name).split()[0]
    value: Any = {"TEXT": "x", "FILE": file, "NUMBER": 1.0, "SECONDS": 7.0}.get(kind, 2000)
    return [option, str(value)], value


def test_what_is_printed_can_be_read_again(tmp_path: Path) -> None:
    arguments = ["serve", "--check-config", "--max-prompts", "3", "--no-draft"]
    printed = CliRunner().invoke(app, arguments).stdout
    settings = load({}, written(tmp_path, printed)).settings
    assert settings == Settings(max_prompts=3, draft=False)


def test_adapters_reach_vllm_as_they_were_named() -> None:
    given = load({"SIMPLESEG_LORA": "birds=/a,b cars=/c"}).settings.vllm_options()
    assert given["adapters"] == ("birds=/a,b", "cars=/c")
    assert "adapters" not in load({}).settings.vllm_options()


def test_upstreams_of_a_variable_are_parted_by_spaces_and_their_keys_by_commas() -> None:
    environ = {"SIMPLESEG_UPSTREAMS": "http://a,2 http://b", "SIMPLESEG_UPSTREAM_API_KEY": "k,l"}
    given = load(environ).settings.remote_options()
    assert given["upstreams"] == ("http://a,2", "http://b")
    assert given["api_keys"] == ("k", "l")


def _check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--check-config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_check_ends_with_0_or_2_and_masks_secrets(tmp_path: Path) -> None:
    good = _check("--api-key", "canary-4711", "--max-prompts", "3")
    assert (good.returncode, good.stderr) == (0, "")
    assert 'api_keys = ["**********"]  # --api-key' in good.stdout
    assert "max_prompts = 3  # --max-prompts" in good.stdout
    bad = _check("--config", str(written(tmp_path, "api_keyz = 'canary-4711'")))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "unknown setting: api_keyz (did you mean api_keys?)" in bad.stderr
    assert "4711" not in good.stdout + bad.stderr


def test_options_are_strings_so_that_one_model_checks_them() -> None:
    kinds = {str(p.annotation.__origin__) for p in options.parameters()}
    assert kinds == {"str | None", "bool | None", "list[str] | None"}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in options.parameters())


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"enable": "moondream,nobody"}, "enable"),
        ({"label_studio_url": "http://ls.internal"}, "one of image_url_hosts"),
        ({"label_studio_url": "ftp://ls.internal"}, "without a path"),
        ({"label_studio_url": "http://ls.internal/labels"}, "without a path"),
        ({"label_studio_token": "a"}, "there is none"),
        (
            {
                "label_studio_url": "http://ls.internal:8080",
                "image_urls": "listed",
                "image_url_hosts": "ls.internal",
            },
            "one of image_url_hosts",
        ),
    ],
)
def test_settings_of_other_tools_that_cannot_work(given: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load({}, options=given)
