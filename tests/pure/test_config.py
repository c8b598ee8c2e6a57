"""Settings: which source wins, where each value comes from, and what is said about mistakes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd._config_declare import key as a_key
from guestd._config_kinds import Integer, ListOf, Path, as_list
from guestd._config_section import Record, Section
from guestd._config_sources import SOURCES, from_cmdline, from_environment, from_file
from guestd.config import (
    DEFAULT,
    Settings,
    capability_numbers,
    environment_name,
    is_loopback,
    keys_of,
    resolve,
    resolve_section,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = keys_of(Settings)

#: Text that every source can carry: the kernel command line has no way to write a double quote inside quotes.
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\x7f'))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "workspace": PLAIN.map(lambda text: f"/{text}"),
    "log.level": st.sampled_from(["debug", "info", "warning", "error"]),
    "command.retain_count": st.integers(0, 1_000_000),
    "command.nice": st.integers(-20, 19),
    "command.no_new_privs": st.booleans(),
    "command.retain_bytes": st.integers(0, 2**36),
    "access.unix_uids": st.lists(st.integers(0, 2**32 - 2), max_size=3),
}


def value_of(settings: object, key: str) -> object:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def as_toml(value: object) -> str:
    # What these tests write is JSON and TOML at once.
    return json.dumps(value, ensure_ascii=False)


def as_text(value: object) -> str:
    if (items := as_list(value)) is not None:
        return ",".join(map(str, items))
    return value if isinstance(value, str) else as_toml(value)


def plain(value: object) -> object:
    """A list for what the settings keep as a tuple."""
    items = as_list(value)
    return value if items is None else items


# ---------------------------------------------------------------------------------------- what wins, and from where


@dataclass
class Written:
    """One key as several sources say it."""

    key: str
    values: dict[str, Any]


@st.composite
def written(draw: st.DrawFn) -> list[Written]:
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    return [Written(key, draw(st.dictionaries(st.sampled_from(SOURCES[1:]), VALUES[key]))) for key in keys]


@given(written())
def test_the_strongest_source_wins_and_is_named(said: list[Written]) -> None:
    # Dotted keys at the top: each on a line of its own, and none moves another.
    lines: list[str] = ["# settings"]
    words = ["quiet"]
    environ: dict[str, str] = {}
    flags: dict[str, object] = {}
    line_of: dict[str, int] = {}
    for each in said:
        if "file" in each.values:
            lines.append(f"{each.key} = {as_toml(each.values['file'])}")
            line_of[each.key] = len(lines)
        if "kernel command line" in each.values:
            words.append(f'guestd.{each.key}="{as_text(each.values["kernel command line"])}"')
        if "environment" in each.values:
            environ[environment_name(each.key)] = as_text(each.values["environment"])
        if "flag" in each.values:
            flags[each.key] = each.values["flag"]

    found = resolve(
        file="\n".join(lines).encode(),
        file_name="/f",
        cmdline=" ".join(words),
        environ=environ,
        flags=flags,
    )

    assert found.problems == ()
    strongest = {each.key: max(each.values, key=SOURCES.index) for each in said if each.values}
    values = {each.key: each.values for each in said}
    for key in KEYS:
        origin = found.origins[key]
        source = strongest.get(key, "default")
        assert origin.source == source
        expected = KEYS[key].kind.read(KEYS[key].default) if source == "default" else values[key][source]
        assert plain(value_of(found.settings, key)) == plain(expected)
        if source == "file":
            assert (origin.name, origin.line) == ("/f", line_of[key])
            assert origin.raw == expected
        elif source == "environment":
            assert (origin.name, origin.raw) == (environment_name(key), as_text(expected))
        elif source == "kernel command line":
            assert origin.raw == f"guestd.{key}={as_text(expected)}"


def test_without_sources_everything_is_a_default_and_nothing_is_wrong() -> None:
    found = resolve()
    assert found.problems == ()
    assert set(found.origins) == set(KEYS)
    assert all(origin is DEFAULT for origin in found.origins.values())
    settings = found.checked()
    assert settings.command.tape == 1024 * 1024
    assert settings.command.drain == 0.25
    assert settings.command.umask == 0o022
    assert settings.access.vsock_cids == (2,)
    assert settings.supervisor.oom_score_adj == -1000
    assert settings.spool_dir == "/run/guestd/spool"


def test_origins_are_told_in_words() -> None:
    found = resolve(
        file=b"\n\nworkspace = '/w'",
        file_name="/etc/guestd/guestd.toml",
        cmdline="guestd.stop.grace=1",
        environ={"GUESTD_SHELL": "/bin/sh"},
        flags={"listen": ["unix:/s"]},
    )
    said = {key: str(origin) for key, origin in found.origins.items() if origin is not DEFAULT}
    assert said == {
        "workspace": "file /etc/guestd/guestd.toml:3",
        "stop.grace": "kernel command line",
        "shell": "environment GUESTD_SHELL",
        "listen": "--listen",
    }


def test_entries_of_a_table_come_from_where_each_was_said() -> None:
    found = resolve(
        file=b"[env]\nA = 'file'\nB = 'file'\n'with space' = 'x'\n[command.rlimits]\nnofile = [1, 2]\ncore = 0",
        cmdline="guestd.env.B=kernel guestd.env.my-name=kernel guestd.command.rlimits.core=unlimited",
        environ={"GUESTD_ENV_A_B": "environment", "GUESTD_COMMAND_RLIMITS_NPROC": "5:6"},
    )
    assert found.problems == ()
    assert found.settings.env == {
        "A": "file",
        "B": "kernel",
        "with space": "x",
        "my-name": "kernel",
        "A_B": "environment",
    }
    assert found.settings.command.rlimits == {"nofile": (1, 2), "core": (-1, -1), "nproc": (5, 6)}
    assert str(found.origins["env.A"]).endswith(":2")
    assert found.origins["env.B"].source == "kernel command line"
    assert str(found.origins["env.with space"]).endswith(":4")
    assert found.origins["env.A_B"].name == "GUESTD_ENV_A_B"
    assert found.origins["command.rlimits.nproc"].source == "environment"


def test_the_last_word_of_the_kernel_command_line_wins_and_init_s_own_are_not_read() -> None:
    found = resolve(cmdline="guestd.command.nice=1 guestd.command.nice=2 -- guestd.command.nice=3 guestd.zzz")
    assert found.problems == ()
    assert found.settings.command.nice == 2


def test_dashes_and_underscores_are_one_in_the_kernel_s_names() -> None:
    assert resolve(cmdline="guestd.command.no-new-privs").settings.command.no_new_privs
    assert resolve(cmdline="guestd.env.a-b=1").settings.env == {"a-b": "1"}


def test_a_whole_table_can_be_text() -> None:
    found = resolve(file=b"env.A = 'file'", environ={"GUESTD_ENV": '{ A = "1", B = "2" }'})
    assert found.settings.env == {"A": "1", "B": "2"}
    assert found.origins["env.B"].name == "GUESTD_ENV"


def test_settings_do_not_change() -> None:
    settings = resolve(environ={"GUESTD_ENV_A": "1"}).settings
    with pytest.raises(AttributeError, match="settings do not change: tape"):
        settings.command.tape = 5
    with pytest.raises(AttributeError, match="settings do not change: log"):
        del settings.log
    table: Any = settings.env
    with pytest.raises(TypeError):
        table["A"] = "2"


def test_two_resolutions_share_nothing() -> None:
    assert resolve(environ={"GUESTD_ENV_A": "1"}).settings.env == {"A": "1"}
    assert resolve().settings.env == {}


@pytest.mark.parametrize(
    "environ",
    [
        {"GUESTD_TO": "unix:/x"},
        {"GUESTD_JOB_ID": "1", "GUESTD_JOB_KEY": "2"},
        {"GUESTD_TEST_ANYTHING": "1", "GUESTD_BENCH_CACHE": "/x", "GUESTD_VENV": "/v"},
        {"GUESTDX": "1", "guestd_listen": "1"},
    ],
)
def test_names_that_are_no_settings_are_left_alone(environ: Mapping[str, str]) -> None:
    assert resolve(environ=environ).problems == ()


def test_a_setting_whose_name_begins_like_one_of_those_is_still_a_setting() -> None:
    """GUESTD_TOKEN_FILE was once taken for guestctl's GUESTD_TOKEN: the guest listened without a token."""
    assert resolve(environ={"GUESTD_TOKEN_FILE": "/t"}).settings.token_file == "/t"
    (problem,) = resolve(environ={"GUESTD_TOKEN_FIL": "/t"}).problems
    assert problem.fix == "did you mean GUESTD_TOKEN_FILE?"


def test_every_setting_has_one_name_in_the_environment() -> None:
    assert len({environment_name(key) for key in KEYS}) == len(KEYS)
    assert environment_name("runtime_dir") == "GUESTD_RUNTIME_DIR"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("127.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_only_loopback_needs_no_token(host: str, *, local: bool) -> None:
    assert is_loopback(host) == local
    address = f"tcp:[{host}]:5" if ":" in host else f"tcp:{host}:5"
    assert (resolve(flags={"listen": [address]}).problems == ()) == local
    assert resolve(flags={"listen": [address], "token_file": "/t"}).problems == ()


def test_capabilities_have_the_kernel_s_numbers() -> None:
    assert capability_numbers(["CAP_CHOWN", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE"]) == (40, 0, 13)
    assert capability_numbers(["all", "CAP_CHOWN"]) == tuple(range(64))
    assert capability_numbers([]) == ()


# ------------------------------------------------------------------------------------------------- lists of tables


class Share(Section):
    source: str = a_key("Where it comes from.", Path(required=True), "/a")
    size: int = a_key("How much.", Integer(0, 9), 5)


class Sample(Section):
    shares: tuple[Share, ...] = a_key("Shares.", ListOf(Record(Share)), ())


def test_a_list_of_tables_is_a_key_like_any_other() -> None:
    file = b"[[shares]]\nsource = '/x'\n\n[[shares]]\nsize = 7\n"
    settings, origins, wrong = resolve_section(Sample, [from_file(Sample, "/f", file)])
    assert wrong == []
    assert [(each.source, each.size) for each in settings.shares] == [("/x", 5), ("/a", 7)]
    assert str(origins["shares"]) == "file /f:1"


def test_mistakes_in_a_list_of_tables_have_their_lines() -> None:
    file = b"[[shares]]\nsource = 'x'\nsiez = 1\n\n[[shares]]\nsource = '/y'\nsize = 10\n"
    _, _, wrong = resolve_section(Sample, [from_file(Sample, "/f", file)])
    assert [str(each) for each in wrong] == [
        'file /f:2: shares[0].source is "x"; expected an absolute path',
        "file /f:3: shares[0].siez is no setting; did you mean size?",
        "file /f:7: shares[1].size is 10; expected a whole number from 0 to 9",
    ]


def test_a_list_of_tables_can_be_text() -> None:
    text = "[{ source = '/x' }, { size = 1 }]"
    for source in (
        from_environment(Sample, {"GUESTD_SHARES": text}),
        from_cmdline(Sample, f'guestd.shares="{text}"'),
    ):
        settings, _, wrong = resolve_section(Sample, [source])
        assert wrong == []
        assert [(each.source, each.size) for each in settings.shares] == [("/x", 5), ("/a", 1)]
