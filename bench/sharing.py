"""A busy process on one of the cores: what an engine keeps of its speed when it does not have the machine to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

from echoc.bench.process import EngineError

# Ordinary priority, whatever the harness has; says that it runs, then never rests.
CODE = """
import os, sys
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
print("busy", flush=True)
while True:
    pass
"""


class BusyProcess:
    """Keeps the first CPU of this process's set busy while the block under `with` runs."""

    def __init__(self) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise EngineError("a busy process beside needs a system that pins processes to CPUs, such as Linux")
        self.cpu = min(os.sched_getaffinity(0))
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> BusyProcess:
        command = [sys.executable, "-S", "-c", CODE, str(self.cpu)]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._child.stdout is not None
        if self._child.stdout.readline() != b"busy\n":
            self._end()
            raise EngineError(f"the busy process does not start on CPU {self.cpu}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._child.stdout is not None:
                self._child.stdout.close()
            self._child = None
