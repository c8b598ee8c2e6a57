"""Real programs, played by their keys: what the oracle's recordings and the tests of shells are made of.

Each is a generator, played by a `Person` in front of bash. It yields where the screen shows what it waited for, so that
something may happen in between (a look, a new size, leaving and coming back). At its end the prompt is back. A program
is waited for by what it shows, never by time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tests.support.screen.install import node, packages

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.support.screen.person import Person

Play: TypeAlias = "Callable[[Person], Generator[None]]"

HARNESS = Path(__file__).resolve().parent / "harness.mjs"

STORY = '''\
"""A module to look at: comments, numbers, strings and a long line."""

import os


class Kettle:
    """Boils water, or says why it cannot."""

    def __init__(self, litres: float = 1.5) -> None:
        self.litres = litres  # never negative

    def boil(self, degrees: int = 100) -> str:
        if degrees > 100:
            raise ValueError(f"water at {degrees} degrees is steam: give 100 or less")
        return "singing" if degrees == 100 else "silent"


WORDS = ["naïve", "café", "日本語", "한국어", "😀", "👩‍🚀", "e\u0301", "\N{FULLWIDTH LATIN CAPITAL LETTER A}"]
LONG = "a line that is longer than most terminals are wide: an editor has to break it or to push it aside, 0123456789"
'''

BOXES = "┌────────┬───────┐\n│ column │ of 日 │\n├────────┼───────┤\n│ 😀 😀  │ ▒▒▒▒▒ │\n└────────┴───────┘\n"

PROGRESS = r"""
import sys, time
def show(text):
    sys.stdout.write(text); sys.stdout.flush()
for i in range(101):
    show(f"\r\x1b[K\x1b[3{i % 7 + 1}m{'█' * (i // 4)}\x1b[0m{'░' * (25 - i // 4)} {i:3} %")
show("\n")
# A bar in the last row, below a scroll region, as package managers draw it.
rows = int(sys.argv[1])
show(f"\n\x1b7\x1b[1;{rows - 1}r\x1b8\x1b[1A")
for i in range(60):
    bar = f"\x1b[42;30m\x1b[KProgress: [{i:3}%]\x1b[0m {'#' * (i // 2)}"
    show(f"Unpacking package-{i} ...\n\x1b7\x1b[{rows};1f{bar}\x1b8")
show(f"\x1b7\x1b[1;{rows}r\x1b[{rows};1f\x1b[K\x1b8")
# Several bars at once: up and down again.
show("\n" * 4)
for i in range(40):
    show("\x1b[4A")
    for bar in range(4):
        show(f"\r\x1b[2Klayer {bar}: {'=' * (i * (bar + 1) // 4)}>\x1b[1B")
    show("\r")
show("all done\n")
"""


def prepare(folder: Path) -> None:
    """The files that the plays look at."""
    (folder / "story.py").write_text(STORY)
    (folder / "boxes.txt").write_text(BOXES)
    numbers = "".join(f"line {i:4} {'-' * (i % 90)}> 日本 {i * i}\n" for i in range(400))
    (folder / "numbers.txt").write_text(numbers)
    (folder / "progress.py").write_text(PROGRESS)
    colours = "".join(
        f"\x1b[{i % 8 + 30}mcolour {i}\x1b[0m \x1b[48;5;{i % 256}m  \x1b[0m \x1b[38;2;{i};{255 - i};90mtrue\x1b[0m"
        f" \x1b[1mbold\x1b[22m \x1b[4:3munder\x1b[24m \x1b[9mstruck\x1b[0m\n"
        for i in range(200)
    )
    (folder / "colours.txt").write_text(colours)
    harness = folder / "harness"
    harness.write_text(f"#!/bin/sh\nexec {node()} {HARNESS} {packages()}\n")
    harness.chmod(0o755)
    for name in ("alpha", "beta", "gamma"):
        (folder / f"folder-{name}").mkdir(exist_ok=True)
        (folder / f"folder-{name}" / "file.txt").write_text(f"{name}\n")


def vim(person: Person) -> Generator[None]:
    person.prompt()
    person.run(
        "vim -N -u NONE -i NONE -n -c 'syntax on|set nu hls ls=2 mouse=a title ruler' story.py",
        "Kettle",
        "All|Top",
    )
    yield
    person.type("gg/litres\r")
    person.wait("/litres")
    yield
    person.type("oinserted \x1b[200~pasted text\x1b[201~ 日本\x1b")
    person.wait("inserted pasted text 日本", gone="INSERT")
    yield
    person.type(":split\r:vsplit\r")
    person.wait("story.py.*story.py")
    yield
    person.type("\x17wG")
    person.wait("Bot")
    yield
    person.type("\x17jVkk")
    person.wait("VISUAL")
    yield
    person.type("\x1b:only\r:set list termguicolors\r:echo 'al'.'one'\r")
    person.wait("alone", gone="VISUAL")
    yield
    person.type(":terminal\r")
    person.wait(r"!bash|\[running\]|bash")
    person.type("echo in''side\r")
    person.wait("^inside")
    yield
    person.type("exit\r")
    person.wait(r"\[\+\]", gone="inside")
    person.type(":qa!\r")
    person.prompt()


def less(person: Person) -> Generator[None]:
    person.prompt()
    person.run("less -R colours.txt", "colour 0")
    yield
    person.type("   ")
    person.wait("^:", gone="colour [0-9] ")
    yield
    person.type("/colour 15\r")
    person.wait("^colour 15")
    yield
    person.type("kkkkG")
    person.wait("colour 199")
    yield
    person.type("g:n?colour 20\r")
    person.wait("colour")
    person.type("q")
    person.prompt()
    person.run("less -S -N numbers.txt", "line    0")
    person.type("\x1bOC")
    person.wait(gone="line    0")
    yield
    person.type("q")
    person.prompt()


def htop(person: Person) -> Generator[None]:
    person.prompt()
    person.run("htop -d 100 -p $$", "F1Help", "PID.USER")
    yield
    person.type("\x1b[15~")
    person.wait("F5List|List")
    yield
    person.type("\x1bOQ")
    person.wait("Categories|Setup|Meters")
    yield
    person.type("\x1bOB\x1bOB")
    person.wait("Default|Colors")
    yield
    person.type("\x1b[21~")
    person.wait("PID.USER", "F1Help")
    person.type("\x1b[14~")
    person.wait("Filter:")
    yield
    person.type("\x1b[21~")
    person.type("q")
    person.prompt()


def tmux(person: Person) -> Generator[None]:
    person.prompt()
    person.run(
        # Keys that come at once are keys, not a paste.
        f"tmux -S {person.folder}/tmux.sock -f /dev/null new-session 'bash --norc --noprofile' \\;"
        " set -g assume-paste-time 0",
        r"\[0\] 0:bash",
    )
    person.type("seq 300; echo la''st\r")
    person.wait("^last")
    yield
    person.type("\x02%")
    person.wait("│")
    person.type("ls --color=always -l; echo se''cond\r")
    person.wait("second")
    yield
    person.type('\x02"')
    person.wait("─")
    person.type("seq 100; cat boxes.txt; echo thi''rd\r")
    person.wait("third")
    yield
    person.type("\x02[")
    person.wait(r"\[[0-9]+/[0-9]+\]")
    person.type("\x1b[5~")
    person.wait(r"\[[1-9][0-9]*/[0-9]+\]")
    yield
    person.type("q")
    person.wait(gone=r"\[[0-9]+/[0-9]+\]")
    person.type("\x02z")
    person.wait("bash[*]Z")
    person.type("echo zoo''med\r")
    person.wait("zoomed")
    yield
    person.type("\x02:")
    person.wait(r"^:\s*\Z")
    person.type("kill-server\r")
    person.prompt()


def dialog(person: Person) -> Generator[None]:
    person.prompt()
    person.run(
        "dialog --colors --title 'A 日本 menu' --menu 'Choose \\Zb\\Z1one\\Zn' 15 40 5 a Alpha b Beta c 'Gámma' d 😀;"
        " clear",
        "Alpha",
        "Cancel",
    )
    yield
    person.type("\x1bOB\x1bOB\t")
    yield
    person.type("\r")
    person.prompt()
    person.run("dialog --checklist 'Some of' 12 40 4 a A on b B off c C on; clear", r"\[[X*]\]", "Cancel")
    yield
    person.type(" \x1bOB \r")
    person.prompt()
    # The gauge reads the keyboard itself, so its figures wait for files.
    person.run(
        "for i in 10 55 90; do echo $i; until rm go 2>/dev/null; do sleep 0.02; done; done |"
        " dialog --gauge Work 8 50; clear",
        "10%",
    )
    yield
    (person.folder / "go").touch()
    person.wait("55%")
    yield
    (person.folder / "go").touch()
    person.wait("90%")
    (person.folder / "go").touch()
    person.prompt()


def mc(person: Person) -> Generator[None]:
    person.prompt()
    person.run("TERM=xterm-256color mc -u -d", "10Quit", "folder-alpha")
    yield
    person.type("\x1b[20~")
    person.wait("Left.*Options")
    person.type("\r")
    person.wait("File listing|Listing format|User menu|Listing")
    yield
    person.type("\x1bOC\x1bOC")
    person.wait("Directory tree|Swap panels|Compare")
    yield
    person.type("\x1b[21~")
    person.wait(gone="Swap panels")
    person.type("\x1b[18~")
    person.wait("Create a new|Directory")
    yield
    person.type("\x1b[21~\x1b[21~")
    # Asked or not, as it is set.
    person.wait("really want|Quit|seat[$]")
    if person.shows("really want"):
        person.type("\r")
    person.prompt()


def nano(person: Person) -> Generator[None]:
    person.prompt()
    person.run("nano --ignorercfiles story.py", r"\^X Exit", "Kettle")
    yield
    person.type("typed here 日本\r")
    person.wait("typed here 日本", r"Modified|\*")
    yield
    person.type("\x17Kettle\r")
    person.wait(gone="Search:")
    yield
    person.type("\x16\x16")
    yield
    person.type("\x18")
    person.wait("Save modified")
    yield
    person.type("n")
    person.prompt()


def bash(person: Person) -> Generator[None]:
    person.prompt()
    person.type("echo " + "long " * 40)
    person.wait("(long ?)+$")
    yield
    person.type("\x01# \x05 at the end\x1b[D\x1b[D\x1b[D middle ")
    person.wait("at the +middle")
    yield
    person.type("\r")
    person.prompt()
    person.type("ls --color=always folder-\t\t")
    person.wait("folder-alpha.*folder-beta")
    yield
    person.type("a\t\r")
    person.wait("file.txt")
    person.prompt()
    person.type("\x12boxes")
    person.wait("reverse-i-search")
    person.type("\x07")
    person.prompt()
    person.run("cat boxes.txt", "└────────┴───────┘")
    person.prompt()
    person.type("\x12cat")
    person.wait(r"reverse-i-search.*cat boxes.txt")
    yield
    person.type("\r")
    person.prompt()
    person.run("cat numbers.txt; echo en''ded", "^ended")
    person.prompt()
    yield
    person.type("for i in 1 2\rdo echo $i 日本\r")
    person.wait("^> ")
    yield
    person.type("done; echo th''rough\r")
    person.wait("^through")
    person.prompt()


def zsh(person: Person) -> Generator[None]:
    person.prompt()
    person.run("PS1='%F{green}%n%f %B%~%b %# ' RPROMPT='%F{yellow}right%f' zsh -f", "[#%] .*right")
    yield
    person.type("PROMPT_EOL_MARK='~'; autoload -U compinit && compinit -D -u\r")
    person.type("zstyle ':completion:*' menu select; echo com''plete\r")
    person.wait("^complete")
    yield
    person.type("ls folder-\t")
    person.wait("folder-alpha.*folder-beta")
    yield
    person.type("\t\t")
    person.wait("ls folder-")
    yield
    # The first of them takes what is marked in the menu.
    person.type("\r\r")
    person.wait("^file.txt")
    person.type("echo -n un''finished\r")
    person.wait("^unfinished")
    yield
    person.type("exit\r")
    person.prompt()


def harness(person: Person) -> Generator[None]:
    person.prompt()
    # Of a box that was drawn for another size pieces stay on the screen, so the number of keys is waited for.
    person.run("./harness", "Keys: 0")
    yield
    for number, key in enumerate(("\x1b[B", *"wörds", "\r", "\x1b[A", *["\r"] * 7), 1):
        person.type(key)
        person.wait(rf"Keys: {number}\b")
        if number % 3 == 0:
            yield
    person.type("\x1b")
    person.prompt()


def progress(person: Person) -> Generator[None]:
    person.prompt()
    person.run(f"python3 progress.py {person.screen.rows}", "^all done")
    person.prompt()
    yield


def bulk(person: Person) -> Generator[None]:
    person.prompt()
    person.run(
        "cat colours.txt numbers.txt story.py; ls -la --color=always / /usr /etc | head -300; echo en''ded",
        "^ended",
    )
    person.prompt()
    yield


#: By name.
PLAYS: dict[str, Play] = {
    play.__name__: play
    for play in (bash, bulk, dialog, harness, htop, less, mc, nano, progress, tmux, vim, zsh)
}
