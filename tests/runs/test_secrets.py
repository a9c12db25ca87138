"""Canaries: what is secret stays out of whatever is shown, kept beside the runs, or uploaded."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from attnres_lab.errors import UserError
from attnres_lab.runs.failures import describe
from attnres_lab.runs.secrets import (
    check_address,
    redact,
    redact_code,
    redact_settings,
    redact_value,
)
from attnres_lab.runs.sweep import SweepFolder

PASSWORDS = (
    "can/ary",
    "can@ary",
    "can%40ary",
    "can?a#ry",
    "can ary",
    "can'ary",
    'can"ary',
    "c:n@a/y",
)


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "https", "mysql"])
def test_a_password_of_any_characters_is_taken_out_of_an_address(
    password: str, scheme: str
) -> None:
    for text in (
        f"storage: {scheme}://lab:{password}@host:5432/db\nname: kept\n",
        f'cannot reach "{scheme}://lab:{password}@host/db" now\nname: kept\n',
    ):
        for kept in (redact(text), redact_code(text), redact_settings(text)):
            assert password not in kept
            assert "host" in kept
            assert "name: kept" in kept


@pytest.mark.parametrize(
    "password", ["canary/secret", "can@ry secret", 'can"ary\\secret', "canärysecret"]
)
@pytest.mark.parametrize("name", ["PGPASSWORD", "HF_TOKEN", "ANY_API_KEY", "MLFLOW_TRACKING_TOKEN"])
def test_the_values_of_secret_variables_are_taken_out_in_every_form(
    password: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    from urllib.parse import quote

    monkeypatch.setenv(name, password)
    for form in (password, repr(password), json.dumps(password), quote(password, safe="")):
        assert redact(f"it said {form}.").replace("'", '"') in ("it said ***.", 'it said "***".')


def test_settings_lose_what_sounds_secret_and_nothing_else() -> None:
    """YAML and shell assign without quotes; tokens that are counted stay."""
    text = "setup: export HF_TOKEN=canary\npassword: canary\napi_key: 'canary'\n"
    plain = "data: {val_tokens: 512, tokenizer: bytes}\nurl = 'http://host:80/x'; mail = 'a@b'\n"
    assert "canary" not in redact_settings(text)
    assert redact_settings(plain) == plain == redact(plain) == redact_code(plain)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_tree_of_settings_loses_what_sounds_secret_and_nothing_else(password: str) -> None:
    tree = {
        "loggers": [{"name": "a.B", "api_key": password, "uri": f"https://me:{password}@host"}],
        "data.tokenizer": "bytes",
        "optim.betas": (0.9, 0.95),
        "token": 3,
    }
    kept = redact_value(tree)
    assert password not in str(kept)
    assert kept["loggers"] == [{"name": "a.B", "api_key": "***", "uri": "https://***@host"}]
    assert {key: kept[key] for key in tree if key != "loggers"} == {
        "data.tokenizer": "bytes",
        "optim.betas": [0.9, 0.95],
        "token": 3,
    }


def test_the_reason_of_a_failure_has_no_password_in_it() -> None:
    error = ConnectionError("no answer from postgresql://lab:can/ary@host/db")
    assert describe(error) == (
        "infrastructure",
        "ConnectionError: no answer from postgresql://***@host/db",
    )


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u@h:x/db",
        "postgres//h/db",
        "htps://h",
        "sqlite:/a.db",
        "http://:80",
        "ftp://h",
        "",
    ],
)
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"storage: .*no address"):
        check_address("storage", address, server=True)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_good_address_is_taken(password: str) -> None:
    for address in (
        f"postgresql://u:{password}@h:1/db",
        f"postgresql+psycopg2://u:{password}@h/db",
    ):
        check_address("storage", address)
    for address in (
        "sqlite:////a/b.db",
        "https://u:p@h:5000/x",
        "http://127.0.0.1:5000",
        "mysql://h/d",
    ):
        check_address("storage", address, server=True)


def test_a_sweep_file_with_a_password_is_for_its_owner(tmp_path: Path) -> None:
    """Whether it was there before, with other rights, or not."""
    folder = SweepFolder(tmp_path / "s")
    folder.path.mkdir()
    file = folder.path / "sweep.json"
    secret = "storage: postgresql://u:canary@host/db\n"
    for yaml, mode in (("name: s\n", 0o644), (secret, 0o600)):
        folder.describe("s", "base.yaml", yaml)
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == mode & 0o077
    file.chmod(0o644)
    folder.describe("s", "base.yaml", secret)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert folder.facts()["yaml"] == secret
