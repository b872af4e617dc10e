from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent import config
from splitedge import errors, limits
from splitedge import settings as setting_forms
from splitedge.settings import Origin, variable
from tests.raising import raises


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_defaults_listen_on_the_loopback_only():
    settings = config.load(environ={})
    assert (settings.api.host, settings.api.port) == ("127.0.0.1", 8471)
    assert settings.demand.keep == "nothing"
    assert not settings.allow_insecure


def test_an_option_beats_a_variable_beats_the_file_beats_the_default(tmp_path):
    path = write(tmp_path, 'model = "file"\ntopk = 2\n[api]\nport = 1\nhost = "::1"\n[demand.weights]\nenergy = 2\n')
    environ = {"SPLITEDGE_API_PORT": "2", "SPLITEDGE_TOPK": "3", "SPLITEDGE_ALLOW_INSECURE": "true", "SPLITEDGE_CA": ""}
    settings = config.load(path, {"api.port": 3, "api.host": None, "demand.max_latency_ms": 20}, environ)
    assert (settings.api.port, settings.topk, settings.model, settings.api.host) == (3, 3, "file", "::1")
    assert settings.demand.max_latency_ms == 20.0
    assert settings.demand.weights.energy == 2.0
    assert settings.allow_insecure
    assert settings.ca == ""


def test_the_file_is_found_by_variable_and_in_the_users_folder(tmp_path):
    path = write(tmp_path, 'model = "named"')
    assert config.load(environ={"SPLITEDGE_CONFIG": str(path)}).model == "named"
    home = tmp_path / "home/.config/splitedge"
    home.mkdir(parents=True)
    (home / "agent.toml").write_text('model = "home"')
    assert config.load(environ={"HOME": str(tmp_path / "home")}).model == "home"


@pytest.mark.parametrize(
    ("text", "reason", "key"),
    [
        ("prot = 1", "unknown-key", "prot"),
        ("[api]\nprot = 1", "unknown-key", "api.prot"),
        ("[demand.weights]\nspeed = 1", "unknown-key", "demand.weights.speed"),
        ("api = 3", "not-a-table", "api"),
        ('[api]\nport = "http"', "value", "api.port"),
        ("[api]\nport = 70000", "value", "api.port"),
        ("[api]\nport = true", "value", "api.port"),
        ("[demand]\nmax_drop_points = -1", "value", "demand.max_drop_points"),
        ("[demand]\nmax_away_s = nan", "value", "demand.max_away_s"),
        ("[demand]\nmax_latency_ms = inf", "value", "demand.max_latency_ms"),
        ("[demand]\nkeep = 3", "value", "demand.keep"),
        ("[demand]\nmode = 'fast'", "value", "demand.mode"),
        ("allow_insecure = 1", "value", "allow_insecure"),
        ('server = "server:8470"', "not-a-url", "server"),
        ('server = "https://[::1"', "not-a-url", "server"),
        ('server = "http://:80"', "not-a-url", "server"),
        ("model = [", "not-toml", None),
        ("[[[" * 2000, "not-toml", None),
        ("x = " + "[" * 5000, "not-toml", None),
        ("#" * (limits.MAX_CONFIG_BYTES + 1), "too-large", None),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_key(tmp_path, text, reason, key):
    with raises(errors.ConfigError, reason=reason) as caught:
        config.load(write(tmp_path, text), environ={})
    assert caught.value.data.get("key") == key
    assert (key or "agent.toml") in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("data", [b"model = '\xff\xfe'", "model = 'm'".encode("utf-16")], ids=["bytes", "UTF-16"])
def test_bytes_that_are_no_text_are_a_config_error(tmp_path, data):
    path = tmp_path / "agent.toml"
    path.write_bytes(data)
    with raises(errors.ConfigError, reason="not-utf8"):
        config.load(path, environ={})


def test_a_byte_order_mark_and_line_ends_of_other_systems_are_no_part_of_what_is_read(tmp_path):
    (tmp_path / "agent.toml").write_bytes(b"\xef\xbb\xbfmodel = 'm'\r\n[api]\r\nport = 1\r\n")
    settings = config.load(tmp_path / "agent.toml", environ={})
    assert (settings.model, settings.api.port) == ("m", 1)
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfsesame\r\n")
    assert config.token(config.Settings(token_file=str(tmp_path / "token")), {}) == "sesame"


@pytest.fixture
def homeless(monkeypatch):
    """As the user of the service: no HOME, and no entry in the list of users."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)


@pytest.mark.parametrize("path", ["~/token", "~nobody-of-this-name/token"])
def test_a_home_folder_that_there_is_not_is_one_sentence(homeless, path):
    for settings in (config.Settings(token_file=path), config.Settings(chain=config.ChainConfig(token_file=path))):
        with raises(errors.ConfigError, reason="no-home"):
            config.token(settings, {}) or config.chain_token(settings)
    with raises(errors.ConfigError, reason="no-home"):
        config.path_of(path)
    with raises(errors.ConfigError, reason="no-home"):
        config.load(environ={"SPLITEDGE_CONFIG": path})


@pytest.mark.parametrize("home", ["", "relative", "/nowhere", "/etc/passwd", "/\ud800", "/" + "x" * 300])
def test_an_odd_home_folder_is_one_without_a_configuration(home):
    assert config.file({"HOME": home}) in (None, config.SYSTEM_FILE)


def test_a_path_with_a_zero_is_refused(tmp_path):
    with raises(errors.ConfigError, reason="value", key="ca"):
        config.load(write(tmp_path, 'ca = "/etc/\\u0000ca.pem"'), environ={})


def test_a_board_is_of_one_kind():
    config.check_role(config.Settings(model="m"))
    config.check_role(config.Settings(stage=config.StageConfig(port=0)))
    for settings in (config.Settings(), config.Settings(model="m", stage=config.StageConfig(port=0))):
        with pytest.raises(errors.ConfigError):
            config.check_role(settings)


def test_a_missing_file_is_named(tmp_path):
    with raises(errors.ConfigError, reason="unreadable") as caught:
        config.load(tmp_path / "absent.toml", environ={})
    assert str(tmp_path / "absent.toml") in caught.value.message


def test_a_wrong_variable_is_named():
    with raises(errors.ConfigError, reason="value", key="api.port") as caught:
        config.load(environ={"SPLITEDGE_API_PORT": "many"})
    assert (caught.value.data["key"], caught.value.data["where"]) == ("api.port", "SPLITEDGE_API_PORT")


def test_bytes_of_another_encoding_are_refused_except_in_a_path():
    for key in ("model", "token", "server", "demand.keep"):
        for given in ({"environ": {variable(key): "m\udcff"}}, {"options": {key: "m\udcff"}, "environ": {}}):
            with pytest.raises(errors.ConfigError) as caught:
                config.load(**given)
            assert caught.value.data["key"] == key
    assert config.load(options={"ca": "/etc/\udcff.pem"}, environ={}).ca == "/etc/\udcff.pem"


def test_a_wrong_option_is_named():
    with raises(errors.ConfigError, reason="value", key="demand.max_drop_points") as caught:
        config.load(options={"demand.max_drop_points": float("nan")}, environ={})
    assert (caught.value.data["key"], caught.value.data["where"]) == ("demand.max_drop_points", "--max-drop")


def test_no_message_or_repr_holds_the_token(tmp_path):
    settings = config.load(options={"token": "s3cret"}, environ={})
    assert "s3cret" not in repr(settings)
    with pytest.raises(errors.ConfigError) as caught:
        config.load(write(tmp_path, "token = [ 's3cret' ]"), environ={})
    assert "s3cret" not in str(caught.value)


def test_the_token_comes_from_setting_file_or_systemd_credential(tmp_path):
    (tmp_path / "a").write_text("from-file\n")
    (tmp_path / config.CREDENTIAL).write_text("from-systemd\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert config.token(config.Settings(token="given", token_file=str(tmp_path / "a")), environ) == "given"
    assert config.token(config.Settings(token_file=str(tmp_path / "a")), environ) == "from-file"
    assert config.token(config.Settings(), environ) == "from-systemd"
    assert config.token(config.Settings(), {}) == ""


@pytest.mark.parametrize("content", ["", "two\nlines", "sp ace", "ünicode", "x" * 5000])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    (tmp_path / "a").write_text(content)
    for name in ("a", "b"):  # b does not exist
        with pytest.raises(errors.ConfigError) as caught:
            config.token(config.Settings(token_file=str(tmp_path / name)), {})
        assert str(tmp_path / name) in caught.value.message


def test_every_setting_has_an_option_and_a_variable_of_its_own_and_a_sentence():
    settings = config.reference()
    assert {"server", "api.port", "demand.keep", "demand.weights.energy"} <= {one.key for one in settings}
    assert all(one.sentence.endswith(".") and one.allowed and one.type for one in settings)
    for field in ("key", "option", "variable"):
        assert len({getattr(one, field) for one in settings}) == len(settings)


def test_the_reference_states_the_default_of_each_setting():
    defaults = {one.key: one.default for one in config.reference()}
    assert defaults["api.port"] == "8471"
    assert defaults["link.replan"] == "true"
    assert defaults["demand.weights.energy"] == "0"
    assert defaults["demand.max_latency_ms"] == "no limit"
    assert defaults["token"] == ""


def test_every_problem_is_collected_and_good_values_keep_their_source(tmp_path):
    path = write(
        tmp_path, 'topk = "x"\nprot = 1\nmodel = "m"\n[api]\nport = 70000\nhost = "::1"\n[chain]\nnext = "x"\n'
    )
    environ = {"SPLITEDGE_LINK_BITS": "many", "SPLITEDGE_THREADS": "2"}
    options = {"demand.mode": "fast", "api.host": "127.0.0.1", "link.replan": False}
    values, problems = config.collect(path, options, environ)
    assert {problem.data["key"] for problem in problems} == {
        "topk", "prot", "api.port", "chain.next", "link.bits", "demand.mode",
    }  # fmt: skip
    origins = {key: given.origin for key, given in values.items()}
    assert origins == {
        "model": Origin("file", str(path)), "chain.next": Origin("file", str(path)), "api.host": Origin("option", "--host"),
        "threads": Origin("variable", "SPLITEDGE_THREADS"), "link.replan": Origin("option", "--replan"),
    }  # fmt: skip
    with raises(errors.ConfigError, **problems[0].data):
        config.load(path, options, environ)


def test_a_file_that_cannot_be_read_is_one_problem_among_those_of_variables(tmp_path):
    _, problems = config.collect(write(tmp_path, "topk ="), {}, {"SPLITEDGE_TOPK": "x"})
    assert [problem.data["reason"] for problem in problems] == ["not-toml", "value"]


def test_a_new_file_has_the_place_that_is_looked_at_first(tmp_path):
    assert config.new_file({"SPLITEDGE_CONFIG": "/a.toml", "HOME": "/h"}) == Path("/a.toml")
    assert config.new_file({"HOME": "/h"}) == Path("/h/.config/splitedge/agent.toml")
    assert config.new_file({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/splitedge/agent.toml")
    assert config.new_file({}) == config.SYSTEM_FILE


@pytest.mark.parametrize("key", ["", "api", "api.prot", "modle", "Model", "api.port "])
def test_an_unknown_key_is_refused(key):
    with raises(errors.ConfigError, reason="unknown-key", key=key):
        config.setting(key)


CREDENTIALS = {"token", "token_file", "ca", "allow_insecure", "chain.token", "chain.token_file", "chain.ca"}


def test_the_fingerprint_follows_what_decides_an_answer() -> None:
    samples = {str: "later", int: 3, float: 0.5, bool: None}
    for one in config.reference():
        default = setting_forms.value_of(config.Settings(), one.key)
        value = not default if setting_forms.base(one.kind) is bool else samples[setting_forms.base(one.kind)]
        if setting_forms.words(one.kind):
            value = next(word for word in setting_forms.words(one.kind) if word != default)
        if one.key in ("server", "chain.next"):
            value = "http://other:1"
        changed = config.from_options({one.key: value})
        same = one.group in ("api", "stage") or one.key in CREDENTIALS | {"cache_dir"}
        assert (config.fingerprint(changed) == config.fingerprint(config.Settings())) == same, one.key
