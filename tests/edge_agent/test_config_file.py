"""The written configuration file loads as the settings that it was made from, and a change of one key changes nothing
else.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import Meta

from edge_agent import config, config_file
from splitedge import errors, limits
from splitedge.settings import Setting, _metadata, base, is_path, value_of, words
from tests.drawn import drawn
from tests.raising import expect, raises

SETTINGS = {one.key: one for one in config.reference()}
URLS = ["http://127.0.0.1:8470", "https://[::1]:1/prefix", "https://board.example", 'https://h/#"\\']
AWKWARD = st.sampled_from(["", '"', "\\", "#", "'''", '"""', "a = 1", "[api]", "\n", "\r\n", "\t", "\x7f", "\x1b", "\u2028", "\ufeff", "é", "🦉"])  # fmt: skip


def values(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that ``setting`` may have."""
    meta = [one for one in _metadata(setting.kind) if isinstance(one, Meta)]

    def bound(*names: str) -> Any:
        return next((getattr(one, name) for one in meta for name in names if getattr(one, name) is not None), None)

    if setting.key in ("server", "chain.next"):
        return st.sampled_from(URLS)
    if found := words(setting.kind):
        return st.sampled_from(found)
    kind = base(setting.kind)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(bound("ge"), bound("le"))
    if kind is float:
        return st.floats(bound("ge", "gt"), bound("le"), exclude_min=bound("gt") is not None, allow_subnormal=False)
    text = st.lists(AWKWARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=4).map("".join)
    found = text.filter(lambda one: (bound("min_length") or 0) <= len(one))
    return found.map(lambda one: one.replace("\0", "")) if is_path(setting.kind) else found


@st.composite
def some_settings(draw: st.DrawFn, most: int = 40) -> config.Settings:
    """Settings of which some have other values than their defaults."""
    keys = draw(st.lists(st.sampled_from(list(SETTINGS)), unique=True, max_size=most))
    return config.from_options({key: draw(values(SETTINGS[key])) for key in keys})


@st.composite
def one_value(draw: st.DrawFn) -> tuple[str, Any]:
    key = draw(st.sampled_from(list(SETTINGS)))
    return key, draw(values(SETTINGS[key]))


def load(path: Path, data: bytes) -> config.Settings:
    path.write_bytes(data)
    return config.load(path, environ={})


def leaves(data: bytes) -> dict[str, str]:
    """The values of the file by their complete key, with their types."""
    found: dict[str, str] = {}

    def visit(table: dict[str, Any], prefix: str) -> None:
        for name, value in table.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = repr(value)

    visit(tomllib.loads(data.decode("utf-8-sig")), "")
    return found


def comments(data: bytes) -> list[str]:
    return [line for line in data.decode().split("\n") if line.startswith("#")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "agent.toml"


@drawn(150)
@given(some_settings())
def test_a_new_file_loads_as_the_settings_that_it_was_made_from(path, settings):
    made = config_file.new(settings).encode()
    assert load(path, made) == settings
    assert set(leaves(made)) == {key for key in SETTINGS if value_of(settings, key) != value_of(config.Settings(), key)}


def test_a_new_file_documents_every_setting_in_80_columns():
    lines = config_file.new(config.Settings()).splitlines()
    assert max(map(len, lines)) <= 80
    names = [line[2:].partition(" =")[0] for line in lines if line.startswith("# ") and " =" in line]
    assert sorted(names) == sorted(key.rpartition(".")[2] for key in SETTINGS)


def test_every_commented_default_is_the_default(path):
    """Without the comment signs of the keys, the file still means the default settings."""
    lines = config_file.new(config.Settings()).splitlines()
    active = [line[2:] if " = " in line and line.startswith("# ") else line for line in lines]
    assert load(path, "\n".join(active).encode()) == config.Settings()


@drawn(150)
@given(some_settings(8), st.lists(one_value(), min_size=1, max_size=5), st.booleans())
def test_a_change_of_a_new_file_loads_and_keeps_all_comments(path, settings, changes, windows):
    data = config_file.new(settings).encode().replace(b"\n", b"\r\n" if windows else b"\n")
    values = leaves(data)
    before = comments(data)
    for key, value in changes:
        data = config_file.changed(data, key, value)
        values[key] = repr(value)
        assert leaves(data) == values
        assert value_of(load(path, data), key) == value
        assert comments(data) == before
        assert (b"\r\n" in data) == windows
    for key, _ in changes:
        data = config_file.changed(data, key, None)
        values.pop(key, None)
        assert leaves(data) == values


#: Pieces of files that people write, and of files that nobody should.
PIECES = [
    "model = 'lite0' # the name", 'model = "a#b"', 'ca = """\nport = 1\n[api]\n"""', "topk = 3", '"topk" = 4', "topk=5#",
    "# topk = 6", "api.port = 1", "api = {port = 1, host = '::1'}", "api = 3", "[api]", "[ 'api' ] # local", "  port = 7",
    "port = 8 # p", "host = '''\nport = 2\n'''", "[demand]", "weights.time = 2.0", "weights = {time = 1}", "keep = 'input'",
    "[demand.weights]", "energy = 1", "[[api]]", "[link]", "bits = 2", "unknown = [\n  1, # one\n  [2],\n]", "", "# a comment",
    "reuse.'max_run' = 3", "[stage]", "date = 1979-05-27 07:32:00", "x = nan", "threads = 0x10", "\t", "demand.mode = 'any'",
]  # fmt: skip


@drawn(400)
@given(
    st.lists(st.sampled_from(PIECES), max_size=8),
    st.sampled_from(["model", "topk", "ca", "api.port", "api.host", "demand.keep", "demand.weights.time", "demand.weights.energy", "reuse.max_run", "link.bits", "threads"]),
    st.data(),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)  # fmt: skip
def test_a_change_of_any_file_is_exact_or_refused(pieces, key, data, end, marked):
    text = end.join(piece.replace("\n", end) for piece in pieces) + data.draw(st.sampled_from(["", end]))
    old = (b"\xef\xbb\xbf" if marked else b"") + text.encode()
    try:
        wanted = leaves(old)
    except tomllib.TOMLDecodeError:
        assume(False)
    value = data.draw(values(SETTINGS[key]) | st.none())
    try:
        new = config_file.changed(old, key, value)
    except errors.ConfigError as error:
        expect(error, errors.ConfigError, reason="cannot-edit", key=key)
        return
    wanted = {name: one for name, one in wanted.items() if name != key} | ({} if value is None else {key: repr(value)})
    assert leaves(new) == wanted
    assert new.startswith(b"\xef\xbb\xbf") == marked
    kept = [line for line in old.split(b"\n") if line in new.split(b"\n")]
    assert len(kept) >= len(old.split(b"\n")) - 1


@pytest.mark.parametrize(
    ("text", "key", "value", "wanted"),
    [
        ("", "topk", 3, "topk = 3\n"),
        ("", "api.port", 3, "[api]\nport = 3\n"),
        ("model = 'm' # mine", "model", "n", 'model = "n" # mine'),
        ("model = 'm'", "topk", 3, "model = 'm'\ntopk = 3\n"),
        ("# mine\r\ntopk = 1\r\n", "api.port", 3, "# mine\r\ntopk = 1\r\n\r\n[api]\r\nport = 3\r\n"),
        ("[api]\n# port = 8471\n\n[link]\n", "api.port", 3, "[api]\n# port = 8471\nport = 3\n\n[link]\n"),
        ("[api]\nhost = '::1'\n\n# next\n[link]\n", "api.port", 3, "[api]\nhost = '::1'\nport = 3\n\n# next\n[link]\n"),
        ("api.host = '::1'\n", "api.port", 3, "api.host = '::1'\napi.port = 3\n"),
        ("[demand]\nweights.time = 1.0\n", "demand.weights.cost", 2.0, "[demand]\nweights.time = 1.0\nweights.cost = 2.0\n"),
        ("[demand.weights]\ntime = 1.0\n", "demand.keep", "input", '[demand.weights]\ntime = 1.0\n\n[demand]\nkeep = "input"\n'),
        ("ca = '''\n[api]\nport = 1\n'''\n[api]\nport = 2\n", "api.port", 3, "ca = '''\n[api]\nport = 1\n'''\n[api]\nport = 3\n"),
        ("topk = 3 # few\n", "topk", None, "# topk = 3 # few\n"),
        ("topk = 3\n", "threads", None, "topk = 3\n"),
        ("x = 1979-05-27 07:32:00\ntopk = 1\n", "topk", 2, "x = 1979-05-27 07:32:00\ntopk = 2\n"),
    ],
)  # fmt: skip
def test_changes(text, key, value, wanted):
    assert config_file.changed(text.encode(), key, value).decode() == wanted


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("api = {port = 1}\n", "api.port"), ("api = {port = 1}\n", "api.host"), ("model = '''\nm'''\n", "model"), ("api = 3\n", "api.port"),
        ("[[api]]\nport = 1\n", "api.port"), ("[model]\nx = 1\n", "model"),
    ],
)  # fmt: skip
def test_what_it_cannot_edit_is_refused(text, key):
    value = 1 if key == "api.port" else "n"
    with raises(errors.ConfigError, reason="cannot-edit", key=key):
        config_file.changed(text.encode(), key, value)


def test_a_file_that_would_not_load_any_more_is_not_made():
    text = "#" * (limits.MAX_CONFIG_BYTES - 4)
    with raises(errors.ConfigError, reason="too-large"):
        config_file.changed(text.encode(), "topk", 3)


def test_a_path_that_is_not_utf8_cannot_be_written():
    with raises(errors.ConfigError, reason="not-utf8", key="ca"):
        config_file.new(config.Settings(ca="/etc/\udcff.pem"))
    with raises(errors.ConfigError, reason="not-utf8", key="ca"):
        config_file.changed(b"", "ca", "/etc/\udcff.pem")
