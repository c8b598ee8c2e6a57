"""What guestd uses of pyinotify, which ships no types: the kernel's names, and its binding."""

IN_CREATE: int
IN_DELETE: int
IN_MODIFY: int
IN_ATTRIB: int
IN_MOVED_FROM: int
IN_MOVED_TO: int
IN_DELETE_SELF: int
IN_MOVE_SELF: int
IN_UNMOUNT: int
IN_Q_OVERFLOW: int
IN_IGNORED: int
IN_ISDIR: int
IN_ONLYDIR: int

class INotifyWrapper:
    @staticmethod
    def create() -> INotifyWrapper | None: ...
    def inotify_init(self) -> int: ...
    def inotify_add_watch(self, fd: int, pathname: str, mask: int) -> int: ...
    def inotify_rm_watch(self, fd: int, wd: int) -> int: ...
    def get_errno(self) -> int: ...
