"""The memory of a process and of those that it has started."""

import threading
from pathlib import Path


def anonymous(root: int) -> int:
    """The largest RssAnon, in bytes, of the process `root` and its descendants."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # the process has ended
        pid = int(fields["Pid"])
        parents[pid], sizes[pid] = int(fields["PPid"]), int(fields.get("RssAnon", "0").split()[0]) * 1024
    family = {root}
    while children := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= children
    return max((sizes.get(pid, 0) for pid in family), default=0)


def anonymous_here() -> int:
    """RssAnon of this process, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


class Peak:
    """The largest RssAnon while it is open."""

    def __enter__(self) -> "Peak":
        self.most, self.done = anonymous_here(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous_here())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
