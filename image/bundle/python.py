"""The interpreter, and as much of its standard library as a supervisor can use.

What is left out is named here, with the reason; everything else is copied. So a new import in guestd or in one of its
packages finds its module, unless it is one of these, which `prove` tells at once.

The interpreter reads `python._pth` beside it: three directories and nothing else, whatever PYTHONPATH, PYTHONHOME, a
user's site-packages or a .pth file of the image would have added.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
import sysconfig
from pathlib import Path

from errors import CannotBuild

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

#: Of the standard library, by the reason. A name is a module's, a package's, or an extension's.
LEFT_OUT = {
    "tests": "test _ctypes_test _testbuffer _testcapi _testclinic _testexternalinspection _testimportmultiple "
    "_testinternalcapi _testlimitedcapi _testmultiphase _testsinglephase _xxtestfuzz xxlimited xxlimited_35 xxsubtype "
    "_xxsubinterpreters __phello__ unittest doctest",
    "windows and games": "tkinter _tkinter idlelib turtle turtledemo curses _curses _curses_panel readline rlcompleter "
    "antigravity this webbrowser _pyrepl",
    "building and installing": "distutils ensurepip lib2to3 venv zipapp",
    "debuggers and documentation": "pydoc pydoc_data pdb bdb cmd code codeop trace tabnanny pyclbr profile cProfile "
    "pstats _lsprof modulefinder pickletools symtable sre_compile sre_constants sre_parse",
    "databases": "dbm _dbm _gdbm sqlite3 _sqlite3",
    "protocols nobody here speaks": "cgi cgitb crypt _crypt ftplib imaplib mailbox mailcap msilib nis nntplib poplib "
    "smtpd smtplib telnetlib wsgiref xmlrpc asynchat xdrlib uu nturl2path _osx_support",
    "sound": "aifc audioop chunk imghdr ossaudiodev sndhdr sunau wave",
    "second processes": "multiprocessing _multiprocessing _posixshmem pipes pty tty",
    "the same in Python, beside the C": "_pydecimal _pyio _pylong",
    "character sets of documents": "_codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw",
    "this distribution's own": "sitecustomize usercustomize config-* LICENSE.txt EXTERNALLY-MANAGED",
}
#: Of the package `encodings`: what text, names on the network and archives come in.
ENCODINGS = {
    "__init__", "aliases", "ascii", "base64_codec", "charmap", "cp437", "hex_codec", "idna", "latin_1", "punycode",
    "raw_unicode_escape", "undefined", "unicode_escape", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be",
    "utf_32_le", "utf_7", "utf_8", "utf_8_sig", "zlib_codec",
}  # fmt: skip


def copy(tree: Path) -> tuple[Path, list[Path]]:
    """The interpreter that runs this goes to bin/python, with its library. Returns where they were."""
    if sys.implementation.name != "cpython" or sys.version_info < (3, 11):
        raise CannotBuild(f"{sys.executable} is no CPython 3.11 or newer: name another with --python")
    interpreter = Path(sys.executable).resolve()
    (tree / "bin").mkdir()
    shutil.copyfile(interpreter, tree / "bin" / "python")
    (tree / "bin" / "python").chmod(0o755)
    paths = "".join(f"../lib/{VERSION}{part}\n" for part in ("", "/lib-dynload", "/site-packages"))
    (tree / "bin" / "python._pth").write_text(paths, encoding="ascii")
    library = tree / "lib" / VERSION
    source = sysconfig.get_paths()["stdlib"]
    taken: list[Path] = []

    def take(file: str, target: str) -> str:
        taken.append(Path(file))
        return shutil.copy2(file, target)

    shutil.copytree(source, library, ignore=_ignored, symlinks=False, copy_function=take)
    (library / "site-packages").mkdir()
    return interpreter, taken


def is_left_out(name: str) -> bool:
    """Is a file or directory of the standard library's own directory left out?"""
    stem = name.split(".", maxsplit=1)[0]
    return any(
        fnmatch.fnmatchcase(name, pattern) or stem == pattern
        for names in LEFT_OUT.values()
        for pattern in names.split()
    )


def _ignored(directory: str, names: list[str]) -> set[str]:
    where = Path(directory)
    ignored = {name for name in names if name in ("__pycache__", "site-packages", "dist-packages", "tests")}
    if where.name == "encodings":
        return ignored | {name for name in names if name.removesuffix(".py") not in ENCODINGS}
    if where.name in (VERSION, "lib-dynload"):
        ignored |= {name for name in names if is_left_out(name)}
    return ignored
