"""Secrets in command lines, masked before anybody outside sees them. Pure.

A rule of thumb cannot know every secret, so it errs towards masking: the value behind a word that sounds like one
(`--password x`, `-H "Authorization: …"`, `API_KEY=…`), credentials in addresses, and what has the shape of a known
kind of token wherever it stands. What is masked keeps its place and loses its length.

Masking twice changes nothing more. Two tables say what is looked for: `_NAMES` and `_SHAPES`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MASK = "***"
#: Parts of names whose values are secret: of switches, variables, headers, fields.
_NAMES = (
    "[a-z]*pass(?:w(?:or)?d)?", "pwd", "pw", "passphrase", "[a-z]*secret", "[a-z]*token", "api[-_.]?key", "apikey",
    "[a-z0-9]+[-_.]key", "auth", "authorization", "bearer", "credentials?", "cookie", "signature", "sig", "sas", "pat",
    "otp", "pin",
)  # fmt: skip
#: Names that hold one of those and are no secret themselves.
_HARMLESS = re.compile(
    r"(?:file|path|dir|url|uri|env|name|type|mode|helper|method|provider|stdin|ttl|expiry|count|limit|tokens|authors?|bypass|compass|"
    r"(?:public|primary|foreign|partition|sort|cache|host)[-_.]key)$",
    re.IGNORECASE,
)
#: Tokens that their makers gave a shape to be found by. Cut ones are found too, so the least length is small.
_SHAPES = (
    r"gh[pousr]_[A-Za-z0-9]{4,}", r"github_pat_\w{4,}", r"glpat-[\w-]{4,}", r"gl(?:rt|dt|cbt|ptt|ft|soat)-[\w-]{4,}",
    r"sk-[A-Za-z0-9_-]{6,}", r"(?:sk|rk|pk)_(?:live|test)_\w{4,}", r"whsec_\w{4,}",
    r"(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{4,}", r"AIza[\w-]{8,}", r"ya29\.[\w-]{4,}", r"GOCSPX-[\w-]{4,}",
    r"xox[a-z]-[\w-]{4,}", r"xapp-[\w-]{4,}", r"npm_[A-Za-z0-9]{8,}", r"pypi-[\w-]{8,}", r"dop_v1_\w{4,}",
    r"hf_[A-Za-z0-9]{6,}", r"hvs\.[\w-]{4,}", r"SG\.[\w-]{6,}(?:\.[\w-]*)?", r"shp(?:at|ca|pa|ss)_\w{4,}",
    r"eyJ[\w-]{4,}\.[\w-]*(?:\.[\w-]*)?", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*",
    r"(?i:bearer|basic|digest|negotiate)\s+(?!\*\*\*)[\w.~+/=:,\"-]{6,}",
)  # fmt: skip
#: Shorter texts have room for none of what is looked for: `pin=1`.
_SHORTEST = 5
_SHAPE = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_SHAPES) + ")")
_IS_NAME = re.compile(r"(?:^|[^a-zA-Z])(?:" + "|".join(_NAMES) + r")(?:$|[^a-zA-Z])", re.IGNORECASE)
# A name without a bound would be looked for again behind each of its letters, in a file in base64 for a long time.
#: camelCase is split, so that `apiToken` is looked at as `api-Token`.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: `name=value` and `name: value` in the middle of a line, a query or JSON; the value may be in quotes.
_PAIR = re.compile(
    r"""(?P<name>[A-Za-z][\w.-]{0,100})(?P<end>["']?\s*(?:=|:\s|":\s*|':\s*|:(?=["'])|%3[dD])\s*)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s&;,|"')}\]]+)"""
)
_HEADER = re.compile(
    r"(?P<name>(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,60}(?:key|token|auth|secret)[\w-]{0,60}|api-key)"
    r"(?P<end>\s*:\s*)(?P<value>[^\r\n\"']+)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<who>[^\s/\"'<>]+)@")
#: A line that was cut may end within the credentials of an address.
_CUT_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<name>[^\s/:@\"']+):(?!\d{1,5}(?:/|$))[^\s/@\"']+$"
)
#: `-u name:password`, wherever it stands.
_USER = re.compile(
    r"(?P<switch>(?:^|(?<=\s))(?:-u|-U|--user|--proxy-user)(?:\s+|=|))(?P<name>[^\s:\"'/-][^\s:\"'/]*):[^\s\"'/]+"
)
#: In a line for a shell: a switch that sounds like a secret, and the word behind it.
_SWITCH = re.compile(
    r"""(?P<switch>(?:^|(?<=\s))--?[A-Za-z][\w.-]*)(?P<end>[ \t]+(?:<<<[ \t]*)?)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s;|&-][^\s;|&]*)"""
)
#: Programs, their switches whose next word is a credential, and those that have it in the same word: `mysql -psecret`.
#: Each holds up to the next program of the line.
_CARRIERS = (
    ("curl", r"-[A-Za-z]{0,16}[uUb]|--user|--proxy-user|--cookie", r"-[A-Za-z]{0,16}?[uU](?=[^\s:]{1,200}:)"),
    ("mysql mysqldump mysqladmin mariadb mariadb-dump sshpass", "-p", "-p"),
    ("mongo mongosh mongodump mongorestore useradd usermod twine", "-p", ""),
    # docker login, podman login, az login, oc login and others
    ("login", "-p", ""),
    ("redis-cli", "-a", ""),
    ("http https", "-a", ""),
    ("wget", "--user", ""),
    ("ldapsearch ldapmodify ldapadd ldapdelete ldapwhoami", "-w", ""),
    ("openssl", "-passin|-passout|-k|-K", ""),
    ("smbclient", "-U", ""),
    ("lftp", "-u", ""),
    ("zip unzip sqlcmd bcp mosquitto_pub mosquitto_sub", "-P", ""),
    ("7z 7za 7zz", "", "-p"),
    ("ssh scp sftp rsync docker podman", "", ""),
)
_NEVER = r"(?!)"
_VALUE = r"""(?P<value>"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s;|&"'-][^\s;|&]*)"""
_OF_PROGRAM = {program: each[1:] for each in _CARRIERS for program in each[0].split()}
_PROGRAM = re.compile(
    r"(?<![\w.-])(?:" + "|".join(sorted(_OF_PROGRAM, key=len, reverse=True)) + r")(?=[ \t])"
)
#: `aws configure set aws_secret_access_key x`, `git config github.token x`: a name, and its value behind it.
_SET = re.compile(
    r"(?P<before>\b(?:config|configure)[ \t](?:[^\n;|&]{0,200}?[ \t])?(?P<name>[\w./:-]{1,200})[ \t]+)"
    + _VALUE
)
_NAME_ALONE = re.compile(r"[\w./:-]+")
#: Google's: `?key=…`.
_QUERY_KEY = re.compile(r"(?<=[?&]key=)[^\s&#\"']+")


class _Carried(NamedTuple):
    """Switches of a program: those that carry in the next word, those that do in their own, and both in a line."""

    next: re.Pattern[str]
    glued: re.Pattern[str]
    line: re.Pattern[str]


@lru_cache(64)
def _carried(program: str) -> _Carried:
    # Made when they are met: most lines need none.
    following, glued = (each or _NEVER for each in _OF_PROGRAM.get(program, ("", "")))
    line = rf"(?P<switch>(?<=\s)(?:(?:{following})[ \t]+|(?:{glued})))" + _VALUE
    return _Carried(*map(re.compile, (following, glued, line)))


@lru_cache(1024)
def is_secret_name(name: str) -> bool:
    """Does the name of a switch, a variable or a field sound like that of a secret?"""
    plain = _HUMP.sub("-", name.strip("-\"'"))
    return bool(_IS_NAME.search(plain)) and not _HARMLESS.search(plain)


def mask_text(text: str) -> str:
    """A text with what is secret in it masked: an address, a header, a line for a shell."""
    # What most records consist of: too short for a secret and its name, or one plain word.
    if len(text) < _SHORTEST or (text.isalnum() and text.islower()):
        return text
    text = _ADDRESS.sub(_without_who, text)
    text = _CUT_ADDRESS.sub(lambda found: f"{found['scheme']}{found['name']}:{MASK}", text)
    text = _USER.sub(lambda found: f"{found['switch']}{found['name']}:{MASK}", text)
    text = _HEADER.sub(lambda found: f"{found['name']}{found['end']}{MASK}", text)
    text = _SHAPE.sub(MASK, text)
    text = _QUERY_KEY.sub(MASK, text)
    text = _mask_pairs(text)
    text = _SWITCH.sub(_masked_switch, text)
    text = _SET.sub(_masked_setting, text)
    return _mask_carried(text)


def mask_words(words: Sequence[str]) -> list[str]:
    """The words of a command line."""
    if not words:
        return []
    program = words[0].rpartition("/")[2]
    found = [mask_text(words[0])]
    hidden = sets = False
    for word in words[1:]:
        if hidden and not (word.startswith("-") and is_secret_name(word)):
            found.append(MASK)
            hidden = False
            continue
        hidden = False
        carried = _carried(program if program in _OF_PROGRAM else "")
        switch = carried.glued.match(word)
        if carried.next.fullmatch(word):
            hidden = True
            found.append(word)
        elif switch is not None and switch.end() < len(word):
            found.append(switch[0] + MASK)
        elif (sets or word.endswith(":")) and is_secret_name(_last_of(word)):
            hidden = True
            found.append(word)
        elif word.startswith("-") and "=" not in word and " " not in word:
            hidden = is_secret_name(word)
            found.append(word if hidden else mask_text(word))
        else:
            found.append(mask_text(word))
        # `sudo mysql …`: what it runs stands somewhere behind it.
        name = word.rpartition("/")[2]
        program = name if name in _OF_PROGRAM else program
        sets = sets or word in {"config", "configure"}
    return found


def mask_value(name: str, value: str) -> str:
    """The value of a variable or a field of that name."""
    return MASK if value and is_secret_name(name) else mask_text(value)


def shown_command(command: str | Iterable[str], rule: str) -> str | list[str] | None:
    """A command line, words or one line for the shell, by the rule `telemetry.arguments`."""
    words = [command] if isinstance(command, str) else list(command)
    if rule == "none" or not words:
        return None
    if rule == "program":
        return None if isinstance(command, str) else words[:1]
    if rule == "full":
        return command if isinstance(command, str) else words
    return mask_text(command) if isinstance(command, str) else mask_words(words)


def _without_who(found: re.Match[str]) -> str:
    who = found["who"]
    name, colon, _ = who.partition(":")
    if colon:
        return f"{found['scheme']}{_SHAPE.sub(MASK, name)}:{MASK}@"
    # A name alone may be a token (https://TOKEN@host); `git@` and its like are none.
    return f"{found['scheme']}{who if len(who) <= 16 and not _SHAPE.search(who) else MASK}@"


def _mask_pairs(text: str) -> str:
    """The value of one pair may be another: `--set=password=x`."""
    pieces: list[str] = []
    kept = at = 0
    while (found := _PAIR.search(text, at)) is not None:
        if found["value"] != MASK and is_secret_name(found["name"]):
            pieces += [text[kept : found.start("value")], MASK]
            kept = at = found.end()
        else:
            at = found.start("value")
    return "".join(pieces) + text[kept:]


def _last_of(word: str) -> str:
    """What is named there: `//registry/:_authToken`, `password:`. More than a name is none."""
    return word.rstrip(":").rpartition(":")[2] if _NAME_ALONE.fullmatch(word) else ""


def _mask_carried(text: str) -> str:
    """What programs of a line carry behind short switches."""
    found = list(_PROGRAM.finditer(text))
    if not found:
        return text
    pieces = [text[: found[0].end()]]
    for each, after in zip(found, [*found[1:], None], strict=True):
        rest = text[each.end() : len(text) if after is None else after.end()]
        pieces.append(_carried(each[0]).line.sub(lambda it: f"{it['switch']}{MASK}", rest))
    return "".join(pieces)


def _masked_setting(found: re.Match[str]) -> str:
    if found["value"] == MASK or not is_secret_name(found["name"].rpartition(":")[2]):
        return found[0]
    return f"{found['before']}{MASK}"


def _masked_switch(found: re.Match[str]) -> str:
    if found["value"] == MASK or not is_secret_name(found["switch"]):
        return found[0]
    return f"{found['switch']}{found['end']}{MASK}"
