"""What guestd/init uses of the C module under `signal`: the same functions, with plain numbers."""

from collections.abc import Callable, Iterable

SIGABRT: int
SIGCHLD: int
SIGCONT: int
SIGHUP: int
SIGINT: int
SIGKILL: int
SIGPIPE: int
SIGPWR: int
SIGQUIT: int
SIGRTMIN: int
SIGTERM: int
SIGTSTP: int
SIGTTIN: int
SIGTTOU: int
SIGUSR1: int
SIGUSR2: int
SIGXFSZ: int
SIG_DFL: int
SIG_SETMASK: int

def pthread_sigmask(how: int, mask: Iterable[int], /) -> set[int]: ...
def set_wakeup_fd(fd: int, /, *, warn_on_full_buffer: bool = True) -> int: ...
def signal(number: int, handler: Callable[[int, object], None] | int, /) -> object: ...
def valid_signals() -> set[int]: ...
