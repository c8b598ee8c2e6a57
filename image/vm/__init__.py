"""Machines of their own: from an image to a kernel, an initramfs and a root file system, and those under QEMU.

Standard library only: `image/build` and `image/run` work with any Python 3.11 and nothing installed.
"""

from __future__ import annotations
