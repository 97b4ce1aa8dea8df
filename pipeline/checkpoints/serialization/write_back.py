"""Have the disk begin while a file is still being written: the kernel alone would gather what a tenth of the memory
holds, and a sync at the end would wait for all of it."""

import ctypes

STEP = 1 << 23
"""Bytes after which the kernel is asked again."""
WRITE = 2
"""linux/fs.h: SYNC_FILE_RANGE_WRITE, which begins to write and waits for nothing."""
_begin = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _begin is not None:
    _begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class WriteBack:
    """Of one file that is written from its beginning. descriptor: of the open file."""

    def __init__(self, descriptor: int):
        self.descriptor, self.begun = descriptor, 0

    def written(self, size: int) -> None:
        """`size` bytes have been written in all. What cannot be begun (another system) the sync at the end does."""
        if _begin is not None and size - self.begun >= STEP:
            _begin(self.descriptor, self.begun, size - self.begun, WRITE)
            self.begun = size
