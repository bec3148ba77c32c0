"""Secrets: recognized by key and by value, masked, and given by the names of environment variables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.records import secrets
from genevolve_ray.records.secrets import (
    hide_secrets,
    is_secret_key,
    mask_output,
    masked,
    plain_secrets,
    redacted,
    references,
    resolved,
    shown,
    without_secrets,
)

KEY = "sk-proj-abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize(
    "key",
    "api_key apiKey API_KEY X-Api-Key x-goog-api-key Ocp-Apim-Subscription-Key password db_password passwd secret "
    "client_secret clientSecret AWS_SECRET_ACCESS_KEY Authorization Proxy-Authorization Cookie Set-Cookie token "
    "auth_token accessToken HF_TOKEN refresh_token credentials private_key bearer".split(),
)
def test_keys_of_secrets_are_known(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    "token_env token_header tokens max_tokens tokens_field eos_token pad_token stop_token image_token key seed_field "
    "token_budget authors secretary keyboard monkey model url".split(),
)
def test_other_keys_are_none(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {KEY}!", "key ***!"),
        ("Authorization: Bearer abcdef.ghijkl", "Authorization: Bearer ***"),
        ("GET https://user:pa55word@host:8/x", "GET https://***@host:8/x"),
        ("git+https://ghtoken@github.com/a/b", "git+https://***@github.com/a/b"),
        ("s3://AKIDEXAMPLE:abc+def@bucket/x", "s3://***@bucket/x"),
        ("http://h/x?key=abcdef&n=1", "http://h/x?key=***&n=1"),
        ("http://h/x?a=1&X-Amz-Signature=ff00#y", "http://h/x?a=1&X-Amz-Signature=***#y"),
        ("AIza" + "b" * 35, "***"),
        ("ghp_" + "a1" * 18, "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0abc.c2lnbmF0dXJl", "***"),
        ("ssh://git@host/x mail me@there.org http://host/a@b", "ssh://git@host/x mail me@there.org http://host/a@b"),
        ("hf_hub_download_with_a_long_name sk-learn", "hf_hub_download_with_a_long_name sk-learn"),
    ],
)
def test_values_that_only_secrets_have_are_masked_in_any_text(text: str, clean: str) -> None:
    assert redacted(text) == clean


def test_settings_are_masked_by_key_and_by_value_and_references_stay() -> None:
    settings = {
        "runtime_env": {
            "env_vars": {"SERPER_API_KEY": "plain", "MY_PAT": KEY, "THREADS": "4", "HF_TOKEN": "${HF_TOKEN}"},
            "pip": ["git+https://tok@github.com/a/b", "numpy"],
        },
        "config": {
            "extra_body": {"api_key": "plain", "nested": [{"password": "plain"}], "eos_token": "</s>"},
            "headers": {"X-Custom": f"Bearer {KEY}"},
            "token_env": "SERPER_API_KEY",
            "credentials": {"user": "me", "word": "open"},
            "timeout_s": 3,
            "api_key": "",
        },
    }
    assert masked(settings) == {
        "runtime_env": {
            "env_vars": {"SERPER_API_KEY": "***", "MY_PAT": "***", "THREADS": "4", "HF_TOKEN": "${HF_TOKEN}"},
            "pip": ["git+https://***@github.com/a/b", "numpy"],
        },
        "config": {
            "extra_body": {"api_key": "***", "nested": [{"password": "***"}], "eos_token": "</s>"},
            "headers": {"X-Custom": "Bearer ***"},
            "token_env": "SERPER_API_KEY",
            "credentials": {"user": "***", "word": "***"},
            "timeout_s": 3,
            "api_key": "",
        },
    }
    keys = [key for key, _ in plain_secrets(settings)]
    assert "config.extra_body.nested.0.password" in keys and "runtime_env.pip.0" in keys
    assert len(keys) == 8
    assert dict(references(settings)) == {"runtime_env.env_vars.HF_TOKEN": "HF_TOKEN"}


def test_variables_and_headers_of_a_tool_server_are_masked_by_their_names() -> None:
    settings = {
        "tools": {
            "mcp": {
                "servers": {
                    "maps": {"env": {"MAPS_KEY": "plain-maps", "MY_TOKEN": "plain-token", "LANG": "C"}},
                    "notes": {"headers": {"X-Subscription-Token": "plain-header", "Accept": "text/plain"}},
                }
            }
        }
    }
    assert masked(settings)["tools"]["mcp"]["servers"] == {
        "maps": {"env": {"MAPS_KEY": "***", "MY_TOKEN": "***", "LANG": "C"}},
        "notes": {"headers": {"X-Subscription-Token": "***", "Accept": "text/plain"}},
    }
    hide_secrets(settings)
    assert redacted("plain-maps plain-token plain-header") == "*** *** ***"


def test_a_mapping_below_a_secret_stays_secret() -> None:
    assert masked({"credentials": {"env": {"USER": "me"}}}) == {"credentials": {"env": {"USER": "***"}}}


def test_settings_with_other_secrets_compare_equal() -> None:
    forms: list[dict[str, Any]] = [{"api_key": value, "n": 1} for value in ("old", "new", "***", "${KEY}")]
    assert len({str(without_secrets(form)) for form in forms}) == 1
    assert without_secrets({"api_key": "a", "n": 2}) != without_secrets(forms[0])


def test_a_plain_secret_is_masked_wherever_it_appears_later() -> None:
    assert hide_secrets({"judge": {"api_key": "correct-horse", "url": "http://me:battery-staple@host"}}) == [
        "judge.api_key",
        "judge.url",
    ]
    assert redacted("401 for correct-horse and battery-staple") == "401 for *** and ***"


def test_references_take_the_value_of_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " a-long-secret \n")
    assert resolved({"a": ["${MY_KEY}", "$MY_KEY", "x${MY_KEY}"]}, "extra_body") == {
        "a": ["a-long-secret", "$MY_KEY", "x${MY_KEY}"]
    }
    assert redacted("echo a-long-secret") == "echo ***"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserFault, match=r"^extra_body\.a\.0: the environment variable MY_KEY is not set$"):
        resolved({"a": ["${MY_KEY}"]}, "extra_body")


def test_text_for_a_terminal_has_neither_secrets_nor_control_characters() -> None:
    assert shown(f"\x1b[31m{KEY}\x07\u202e\nline") == "***  \nline"


@pytest.fixture
def masking() -> Iterator[None]:
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    mask_output()
    yield
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook


@pytest.mark.usefixtures("masking")
def test_logs_and_tracebacks_are_masked(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("some.library").warning("calling %s with %s", "http://u:secret-word@h", KEY)
    assert caplog.messages == ["calling http://***@h with ***"]
    try:
        raise ValueError(f"bad key {KEY}")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert printed.endswith("ValueError: bad key ***\n") and "Traceback" in printed


@pytest.mark.parametrize(
    "unit",
    [
        "\x1b[",
        "\x1b]",
        "http://a:",
        "sk-",
        "eyJ" + "a" * 20 + ".",
        "Bearer ",
        "?key=",
        "https://",
        "a://b@",
        "-----BEGIN A",
        "hf_",
    ],
)
def test_the_patterns_take_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        started = time.process_time()
        redacted(text)
        return time.process_time() - started

    redacted("warm")
    assert seconds(200_000) < 40 * max(seconds(20_000), 0.002)
