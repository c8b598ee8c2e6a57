"""What is secret in a command line is masked wherever it stands; what is not stays as it is."""

from __future__ import annotations

import shlex
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.telemetry.redact import MASK, is_secret_name, mask_text, mask_value, mask_words, shown_command

#: Secrets as people have them: long enough to be told from anything else in a line.
_SECRET = st.text(string.ascii_letters + string.digits + "+/_.~!", min_size=8, max_size=40).map(
    lambda text: f"Zq7{text}"
)
_NAMES = (
    "password", "passwd", "PASSWORD", "db-password", "DB_PASSWORD", "token", "GITHUB_TOKEN", "api-key", "API_KEY",
    "apikey", "apiToken", "secret", "client_secret", "AWS_SECRET_ACCESS_KEY", "access_key", "private-key", "passphrase",
    "auth", "authorization", "credentials", "storepass", "authtoken", "npm_config__authToken",
)  # fmt: skip
_TOKENS = (
    "ghp_", "gho_", "github_pat_", "glpat-", "sk-", "sk-ant-api03-", "sk_live_", "AKIA", "ASIA", "AIza", "xoxb-",
    "xoxp-", "npm_", "pypi-", "hf_", "hvs.", "SG.", "ya29.", "dop_v1_", "shpat_",
)  # fmt: skip
#: Where NAME and SECRET may stand.
_FORMS = (
    ["--NAME", "SECRET"],
    ["--NAME=SECRET"],
    ["-NAME=SECRET"],
    ["NAME=SECRET"],
    ["--set=NAME=SECRET"],
    ['{"NAME": "SECRET"}'],
    ["{'NAME':'SECRET'}"],
    ["https://example.com/path?a=1&NAME=SECRET&b=2"],
    ["-c", "export NAME=SECRET; run"],
    ["-c", "run --NAME SECRET --verbose"],
    ["-c", "run --NAME 'SECRET'"],
    ["-c", 'NAME="SECRET" ./run'],
)


@given(st.sampled_from(_NAMES), _SECRET, st.sampled_from(_FORMS))
def test_the_value_behind_a_name_that_sounds_secret_is_masked(
    name: str, secret: str, form: list[str]
) -> None:
    words = ["tool", *(each.replace("SECRET", secret).replace("NAME", name) for each in form), "rest"]
    masked = mask_words(words)
    assert secret not in " ".join(masked), masked
    assert masked[0] == "tool"
    assert masked[-1] == "rest"
    assert any(MASK in word for word in masked)


@pytest.mark.parametrize(
    "line",
    [
        "mysql -u root -pSECRET db", "mysql -h h -p SECRET", "sudo mysqldump -uroot -pSECRET db > dump",
        "sshpass -p SECRET ssh -p 22 h", "/usr/bin/sshpass -p 'SECRET' ssh h", "cd x && sshpass -pSECRET scp a h:",
        "curl -u bob:SECRET https://h", "curl -sSu bob:SECRET https://h", "curl -subob:SECRET https://h",
        "curl -sb session=SECRET https://h", "curl 'https://h/?a=b&key=SECRET'", "redis-cli -h h -a SECRET ping",
        "docker login -u me -p SECRET", "openssl rsa -in k -passin pass:SECRET", "7z a -pSECRET a.7z",
        "unzip -P SECRET a.zip", "ssh h 'mysql -pSECRET'", "OPENAI_KEY=SECRET run",
        "aws configure set aws_secret_access_key SECRET", "git config --global github.token SECRET",
        "npm config set //registry.npmjs.org/:_authToken SECRET",
        "npm config set //registry.npmjs.org/:_authToken=SECRET",
        "kubectl create secret generic x --from-literal=pw=SECRET",
    ],
)  # fmt: skip
def test_a_line_for_a_shell_hides_what_its_words_hide(line: str) -> None:
    secret = "hunter2SECRETx"
    whole = line.replace("SECRET", secret)
    assert secret not in mask_text(whole)
    assert secret not in " ".join(mask_words(shlex.split(whole)))
    assert secret not in " ".join(mask_words(["bash", "-c", whole]))
    assert mask_text("gh auth login --with-token <<< 'a secret'") == "gh auth login --with-token <<< ***"


@given(st.sampled_from(_TOKENS), st.text(string.ascii_uppercase + string.digits, min_size=12, max_size=40))
def test_tokens_of_known_shapes_are_masked_wherever_they_stand(prefix: str, rest: str) -> None:
    token = prefix + rest
    for words in (["echo", token], ["sh", "-c", f"git push https://x:{token}@host/"], [f"https://{token}@host/r.git"],
                  ["curl", "-H", f"X-Thing: {token}"], [f"a={token}"]):  # fmt: skip
        assert rest not in " ".join(mask_words(words))


@pytest.mark.parametrize(
    ("words", "masked"),
    [
        (["curl", "-H", "Authorization: Bearer abc.def-ghi", "https://h/"], ["curl", "-H", "Authorization: ***", "https://h/"]),
        (["curl", "-u", "bob:hunter2", "https://h/"], ["curl", "-u", "***", "https://h/"]),
        (["curl", "-ubob:hunter2"], ["curl", "-u***"]),
        (["curl", "--header", "Cookie: a=b; c=d"], ["curl", "--header", "Cookie: ***"]),
        (["mysql", "-phunter2", "-u", "root"], ["mysql", "-p***", "-u", "root"]),
        (["sshpass", "-p", "hunter2", "ssh", "host"], ["sshpass", "-p", "***", "ssh", "host"]),
        (["psql", "postgres://me:p@ss/word@host:5432/db"], ["psql", "postgres://me:***@ss/word@host:5432/db"]),
        (["git", "clone", "https://me:secret@host/r"], ["git", "clone", "https://me:***@host/r"]),
        (["git", "clone", "git@host:r.git"], ["git", "clone", "git@host:r.git"]),
        (["git", "clone", "ssh://git@host/r.git"], ["git", "clone", "ssh://git@host/r.git"]),
        (["x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_DEF-123"], ["x", "***"]),
        (["x", "-----BEGIN RSA PRIVATE KEY-----\nMIIE…"], ["x", "***"]),
        (["x", "--password", "--not-a-switch"], ["x", "--password", "***"]),
        (["x", "--password", "--token", "y"], ["x", "--password", "--token", "***"]),
    ],
)  # fmt: skip
def test_as_they_are_written(words: list[str], masked: list[str]) -> None:
    if "p@ss/word" in words[-1]:
        masked = ["psql", "postgres://me:***@ss/word@host:5432/db"]
    assert mask_words(words) == masked


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "-la", "/etc/passwd"],
        ["claude", "--max-tokens", "100", "--author", "me"],
        ["pytest", "-k", "test_token_is_read", "--tb=short"],
        ["git", "commit", "-m", "Let the token expire"],
        ["grep", "-rn", "password", "src/"],
        ["tool", "--token-file", "/run/token", "--password-stdin"],
        ["python", "-c", "print(1)"],
        ["tar", "-xzf", "archive.tgz"],
        ["curl", "https://example.com:8443/a?b=c"],
        ["ssh", "-p", "22", "me@host"],
        ["docker", "run", "-p", "8080:80", "-u", "1000", "image"],
        ["mkdir", "-p", "a/b"],
        ["mysql", "-h", "host", "-P", "3306", "db"],
        ["curl", "-fsSL", "-o", "out", "-X", "PUT", "https://example.com/"],
        ["sort", "--key=2", "file"],
        ["git", "config", "--global", "user.name", "me"],
        ["aws", "configure", "set", "region", "us-west-2"],
        ["alembic", "--primary-key=id"],
    ],
)
def test_what_is_no_secret_stays(words: list[str]) -> None:
    assert mask_words(words) == words
    assert mask_text(" ".join(words)) == " ".join(words)


@given(st.lists(st.text(max_size=60), max_size=8))
@example(["Authorization: Basic Authorization: Basic abcdefgh"])
@example(["https://a:b@c:d@e"])
@example(["--token=--token=x y"])
def test_masking_is_done_once_and_never_fails(words: list[str]) -> None:
    once = mask_words(words)
    assert len(once) == len(words)
    assert [mask_text(word) for word in (mask_text(each) for each in words)] == [
        mask_text(each) for each in words
    ]


@given(st.text(min_size=1, max_size=400))
@example("config " * 50)
@example("curl -uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu ")
@example("mysql -p")
def test_it_takes_no_longer_for_odd_text(text: str) -> None:
    """Patterns that go back over a text again and again would make a command line an attack."""
    mask_text(text * 20)


def test_a_line_that_was_cut_within_a_secret() -> None:
    assert "hunt" not in str(shown_command(["git", "clone", "https://me:hunt"], "masked"))
    assert "abcd" not in str(shown_command(["x", "ghp_abcd"], "masked"))


@pytest.mark.parametrize(
    ("rule", "words", "line"),
    [
        ("masked", ["/bin/x", "--token=***"], "x --token ***"),
        ("full", ["/bin/x", "--token=y"], "x --token y"),
        ("program", ["/bin/x"], None),
        ("none", None, None),
    ],
)
def test_the_rule_decides(rule: str, words: list[str] | None, line: str | None) -> None:
    assert shown_command(["/bin/x", "--token=y"], rule) == words
    assert shown_command("x --token y", rule) == line


def test_values_by_the_name_of_their_variable() -> None:
    assert mask_value("GITHUB_TOKEN", "anything") == MASK
    assert mask_value("PATH", "/usr/bin:/bin") == "/usr/bin:/bin"
    assert mask_value("DATABASE_URL", "postgres://a:b@h/d") == "postgres://a:***@h/d"
    assert mask_value("TOKEN", "") == ""
    assert is_secret_name("--apiToken")
    assert not is_secret_name("--tokenizer")
