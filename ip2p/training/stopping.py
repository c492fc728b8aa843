"""How a training learns that it is to save its state and end."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field
from types import FrameType


@dataclass(slots=True)
class Stop:
    """Set by a signal or by the end of the process that started this one; the loop then saves and ends."""

    wanted: threading.Event = field(default_factory=threading.Event)

    def on_signals(self) -> Stop:
        """Listens to SIGINT and SIGTERM."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._on_signal)
        return self

    def on_end_of_input(self) -> Stop:
        """Listens to the end of standard input, which the starting process holds open as long as it lives."""
        threading.Thread(target=self._read_to_end, daemon=True).start()
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.wanted.set()

    def _read_to_end(self) -> None:
        while os.read(0, 4096):  # unbuffered, so that the thread holds no lock when the process ends
            pass
        self.wanted.set()


class Interrupted(RuntimeError):
    """The training was asked to stop and saved its state."""
