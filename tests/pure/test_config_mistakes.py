"""What is said about mistakes in the settings: where, what, and what would be right; and nothing brings it down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.config import Configuration, Settings, environment_name, keys_of, resolve
from guestd.errors import ConfigError

KEYS = keys_of(Settings)


def told(found: Configuration) -> list[str]:
    return [str(each) for each in found.problems]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "[command]\ntpae = 1",
            "file /f:2: command.tpae is no setting; did you mean command.tape?",
        ),
        ("tape = 1", "file /f:1: tape is no setting; did you mean command.tape?"),
        ("\n[comand]\ntape = 1\ngrace = 1", "file /f:2: comand is no setting; did you mean command?"),
        ("zzz = 1", "file /f:1: zzz is no setting; `guestd check --keys` lists all settings"),
        ("__init__ = 1", "file /f:1: __init__ is no setting; "),
        ("log = 'debug'", 'file /f:1: log is "debug"; expected a table, with keys out of log.level'),
        ("log.level = 1", 'file /f:1: log.level is 1; expected one of "debug", "info", "warning", "error"'),
        ("[user]\nname = 'x'", "file /f:1: user is a table; expected the name or number of a user"),
        ("user = '4294967295'", 'user is "4294967295"; expected the name or number of a user'),
        (
            "command.tape = true",
            (
                "file /f:1: command.tape is true; expected a number of bytes from 4 KiB to 1 GiB,"
                ' or text such as "1 MiB"'
            ),
        ),
        ("command.tape = 4095", "command.tape is 4095; expected a number of bytes from 4 KiB"),
        ("command.tape = 'big'", 'command.tape is "big"; expected a number of bytes'),
        ("command.tape = 1e6", "command.tape is 1000000.0; expected a number of bytes"),
        (
            "command.timeout = 'soon'",
            'command.timeout is "soon"; expected seconds from 0 s to 3650 d, or text such as "90s" or "1h30m"',
        ),
        ("command.timeout = nan", "command.timeout is nan; expected seconds"),
        ("command.timeout = inf", "command.timeout is inf; expected seconds"),
        ("command.timeout = true", "command.timeout is true; expected seconds"),
        ("command.timeout = -1", "command.timeout is -1; expected seconds"),
        ("limits.jobs = '5'", 'limits.jobs is "5"; expected a whole number from 1 to 100000'),
        ("limits.jobs = true", "limits.jobs is true; expected a whole number"),
        ("limits.jobs = 0", "limits.jobs is 0; expected a whole number from 1 to 100000"),
        ("command.no_new_privs = 1", "command.no_new_privs is 1; expected true or false"),
        ("command.umask = 0o1000", "command.umask is 512; expected octal digits from 0o000 to 0o777"),
        ("workspace = 'here'", 'workspace is "here"; expected an absolute path'),
        ("workspace = ''", 'workspace is ""; expected an absolute path'),
        ('shell = "/a\\u0000b"', "; expected an absolute path, or"),
        ("access.vsock_cids = 2", "access.vsock_cids is 2; expected a list, each item a whole number"),
        (
            "[access]\nvsock_cids = [\n  2,\n  'x',\n]",
            'file /f:4: access.vsock_cids[1] is "x"; expected a whole number',
        ),
        ("env = 5", "file /f:1: env is 5; expected a table, each value text"),
        ("[env]\nA = 'x'\nB = 5", "file /f:3: env.B is 5; expected text"),
        (
            "[env]\n'A=B' = 'x'",
            "file /f:2: env.A=B has a name that cannot be used; expected the name of a variable",
        ),
        (
            "command.rlimits.files = 1",
            "command.rlimits.files has a name that cannot be used; expected one of as, core",
        ),
        (
            "command.rlimits.nofile = [2, 1]",
            (
                'command.rlimits.nofile is [2, 1]; expected a number, a size such as "64 MiB", "unlimited",'
                " or [SOFT, HARD] of these, SOFT not above HARD"
            ),
        ),
        ("command.rlimits.nofile = ['unlimited', 1]", "SOFT not above HARD"),
        ("command.rlimits.nofile = [1]", "SOFT not above HARD"),
        ("command.rlimits.nofile = -1", "SOFT not above HARD"),
        (
            "command.drop_capabilities = ['NET_RAW']",
            (
                'command.drop_capabilities[0] is "NET_RAW"; expected the name of a capability as in'
                ' capabilities(7), such as "CAP_NET_RAW", or "all"; did you mean "CAP_NET_RAW"?'
            ),
        ),
        (
            "listen = ['unix:/a', 'foo']",
            (
                "file /f:1: listen[1] cannot be used: address 'foo': there is no scheme in it;"
                " expected unix:PATH, vsock:CID:PORT (CID may be any) or tcp:HOST:PORT"
            ),
        ),
        (
            "listen = ['ws://h']",
            "which is where a client connects; WebSocket clients come to the same sockets",
        ),
        ("listen = [5]", "listen[0] is 5; expected unix:PATH"),
        (
            "command.tape = '400 MiB'",
            (
                "command.tape is 419430400 bytes, twice for a command;"
                " expected at most half of limits.tapes, 536870912"
            ),
        ),
        (
            "limits.tapes = '1 MiB'",
            "limits.tapes is 1048576 bytes; expected at least twice command.tape, 2097152",
        ),
        (
            "listen = ['tcp:0.0.0.0:1024']",
            (
                "file /f:1: listen has tcp:0.0.0.0:1024, which others than this machine can reach;"
                " set token_file too"
            ),
        ),
        ("a = 1\nb =\n", "file /f:2: this is not TOML: Invalid value; nothing of the file is in force"),
        ("[log", "file /f:1: this is not TOML: "),
        ("x = '''\n\n", "file /f:1: this is not TOML: "),
    ],
)
def test_a_mistake_in_the_file_says_where_what_and_what_would_be_right(file: str, expected: str) -> None:
    (said,) = told(resolve(file=file.encode(), file_name="/f"))
    assert expected in said
    assert said.startswith("file /f:")


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("guestd.tpae=1", "kernel command line: tpae is no setting; did you mean command.tape?"),
        ("guestd.command.tape", 'command.tape is "true"; expected a number of bytes'),
        ("guestd.command.nice=1.5", 'command.nice is "1.5"; expected a whole number from -20 to 19'),
        ("guestd.access.vsock_cids=2,x", 'access.vsock_cids[1] is "x"'),
        ("guestd.env=5", "env is 5; expected a table"),
        ("guestd.env={", 'env is "{"; expected a table'),
        ("guestd.access.vsock_cids=[2", 'access.vsock_cids is "[2"; expected a list'),
        ("guestd.=1", "kernel command line:  is no setting"),
    ],
)
def test_a_mistake_on_the_kernel_command_line(cmdline: str, expected: str) -> None:
    (said,) = told(resolve(cmdline=cmdline))
    assert expected in said
    assert said.startswith("kernel command line: ")


def test_all_mistakes_are_told_at_once_in_the_order_of_sources_and_lines() -> None:
    found = resolve(
        file=b"[command]\nnice = 99\ntpae = 1\ngrace = 'x'\n[coman]\n",
        file_name="/f",
        cmdline="guestd.zzz=1 guestd.limits.jobs=0",
        environ={"GUESTD_STOP_GRACE": "never", "GUESTD_NO_SUCH": "1"},
        flags={"listen": ["foo"]},
    )
    assert [(str(each.origin), each.key) for each in found.problems] == [
        ("file /f:2", "command.nice"),
        ("file /f:3", "command.tpae"),
        ("file /f:4", "command.grace"),
        ("file /f:5", "coman"),
        ("kernel command line", "zzz"),
        ("kernel command line", "limits.jobs"),
        ("environment GUESTD_NO_SUCH", "GUESTD_NO_SUCH"),
        ("environment GUESTD_STOP_GRACE", "stop.grace"),
        ("--listen", "listen[0]"),
    ]
    with pytest.raises(ConfigError) as caught:
        found.checked()
    assert caught.value.message.startswith("9 problems:\n  file /f:2: command.nice is 99; expected")
    assert caught.value.details["problems"] == [str(each) for each in found.problems]


def test_one_mistake_needs_no_list() -> None:
    with pytest.raises(ConfigError, match=r"\Akernel command line: zzz is no setting; "):
        resolve(cmdline="guestd.zzz=1").checked()


def test_a_mistake_that_another_source_overrides_is_told_and_changes_nothing() -> None:
    found = resolve(file=b"command.tape = 'big'", environ={"GUESTD_COMMAND_TAPE": "2M"})
    assert [each.key for each in found.problems] == ["command.tape"]
    assert found.settings.command.tape == 2 << 20


def test_a_value_that_cannot_be_used_leaves_the_weaker_one_in_force() -> None:
    found = resolve(file=b"command.tape = '2M'", environ={"GUESTD_COMMAND_TAPE": "big"})
    assert found.settings.command.tape == 2 << 20
    assert found.origins["command.tape"].source == "file"


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_gets_the_nearest_right_name(key: str) -> None:
    """Each letter left out, wherever it stands."""
    section, _, last = key.rpartition(".")
    for at in range(len(last)):
        wrong = f"{section}.{last[:at]}{last[at + 1 :]}".strip(".")
        if wrong in KEYS or not wrong.rpartition(".")[2]:
            continue
        (said,) = told(resolve(file=f"{wrong} = 1".encode()))
        assert said.endswith(f"did you mean {key}?"), wrong


WRONG_TYPES = ("1979-05-27", "{ x.y = 1 }", "[[[]]]", "-1e300", '"\\u0000"')


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", WRONG_TYPES)
def test_no_key_takes_what_it_cannot_use(key: str, value: str) -> None:
    found = resolve(file=f"\n{key} = {value}".encode())
    assert found.problems
    for problem in found.problems:
        assert problem.key.startswith(key)
        assert problem.origin.line == 2
    assert repr(found.settings) == repr(resolve().settings)


# -------------------------------------------------------------------------------------- nothing brings it down


@given(st.binary(), st.text(), st.dictionaries(st.text().map(lambda name: f"GUESTD_{name}"), st.text()))
def test_nonsense_gives_settings_and_problems_never_an_exception(
    file: bytes, cmdline: str, environ: dict[str, str]
) -> None:
    found = resolve(file=file, cmdline=f"guestd.{cmdline}", environ=environ)
    assert isinstance(found, Configuration)
    for problem in found.problems:
        assert problem.message
        assert problem.fix
        if problem.origin.source == "file":
            assert problem.origin.line is not None
            assert 1 <= problem.origin.line <= file.count(b"\n") + 1


@given(st.sampled_from(sorted(KEYS)), st.text())
def test_any_text_for_any_key_is_read_or_refused(key: str, text: str) -> None:
    found = resolve(environ={environment_name(key): text})
    if found.problems:
        assert repr(found.settings) == repr(resolve().settings) or key == "listen"


def test_deep_nesting_is_refused() -> None:
    (said,) = told(resolve(file=b"x = " + b"[" * 100_000))
    assert "this is not TOML" in said
