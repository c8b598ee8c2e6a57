"""File systems and files: two rooms behind one door, which a module's name tells apart.

`file_…` is about files. What is asked about them is done in a process of its own, as the user who asks:
  the process         agent (started by this name, also by a guestd of another version, so it keeps it), file_line
  where a path leads  file_places
  what is asked       file_names, file_contents, file_trees, with file_digest
  watching            file_watching, file_watched, file_coalescing, file_globs, file_inotify
  its words           file_packing
  guestd's side       file_agents

All others are about mounts:
  which there are     plan, options, fuse, entry; workspace, home
  one mount's life    keeper, attempt, unmounting; mounts has all of them
  watching over them  lookout, health, table, mountinfo, kmsg
  what may hang       ask, and outside of this process: worker, kernel, devices, superblock, directory
"""

from __future__ import annotations

#: The variable in which the worker is told what to do.
REQUEST = "GUESTD_JOB_STORAGE"
