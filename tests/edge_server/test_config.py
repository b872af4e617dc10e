"""Settings of the server: options, variables and defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_server import config
from splitedge import errors


def test_an_option_overrides_a_variable_which_overrides_the_default() -> None:
    environ = {"SPLITEDGE_SERVE_PORT": "1", "SPLITEDGE_SERVE_AUTH": "false", "SPLITEDGE_DEMAND_KEEP": "input"}
    settings = config.load({"serve.port": 2, "serve.host": None}, environ)
    assert (settings.serve.port, settings.serve.auth, settings.serve.host) == (2, False, "127.0.0.1")
    assert settings.demand.keep == "input"


@pytest.mark.parametrize("value", ["many", "-1", "65536"])
def test_a_wrong_variable_is_named(value: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        config.load(environ={"SPLITEDGE_SERVE_PORT": value})
    assert caught.value.data["where"] == "SPLITEDGE_SERVE_PORT"


def test_the_folder_of_the_store_may_begin_with_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load(environ={"SPLITEDGE_STORE": "~/models"}).folder() == tmp_path / "models"
    assert config.load(environ={}).folder({}) == tmp_path / ".local/share/splitedge/server"
    assert config.load(environ={}).folder({"XDG_DATA_HOME": "/data"}) == Path("/data/splitedge/server")
    with pytest.raises(errors.StoreError):
        config.load({"store": "~nobody-of-this-name/models"}, {}).folder()


def test_every_setting_has_an_option_and_a_variable_of_its_own_and_a_sentence() -> None:
    settings = config.reference()
    assert {"store", "serve.port", "demand.keep"} <= {one.key for one in settings}
    assert all(one.sentence.endswith(".") and one.allowed for one in settings)
    for field in ("key", "option", "variable"):
        assert len({getattr(one, field) for one in settings}) == len(settings)
