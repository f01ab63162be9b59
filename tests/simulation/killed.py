"""A run that is killed again and again, and goes on: what `test_kill.py` starts as a process of its own.

    python killed.py SETTINGS.json MOMENTS.json

Every life is forked from this process, which has imported everything and done nothing: it starts at once.
The moments, `[phase, number, share]`, are each a point inside the number-th call of a phase's function since
the life began, that share of its Python calls in. Writes what happened to standard output.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from settings.schema import Settings
from simulation.federation import simulate

PHASES = {
    "training": ("mods.py", "compress"),
    "evaluation": ("app.py", "evaluate_model"),
    "checkpoint": ("saver.py", "_write"),
}


class Fuse:
    """Counts the Python calls inside a phase, and kills the process at a moment.

    Args:
        phase: One of PHASES.
        number: The call of its function that counts: 1, 2, ...
        steps: Calls inside it after which the process ends; None: never.
    """

    def __init__(self, phase: str, number: int, steps: int | None) -> None:
        self._file, self._function = PHASES[phase]
        self._number, self._limit = number, steps
        self._frame: FrameType | None = None
        self._thread = 0
        self.steps = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls, in every thread."""
        if self._frame is not None:
            if self._thread != threading.get_ident():
                return
            self.steps += event in ("call", "c_call")
            ended = frame is self._frame and event == "return"
            if self._limit is not None and (ended or self.steps > self._limit):
                os.kill(os.getpid(), signal.SIGKILL)
            if ended:
                self._frame = None
        elif event == "call" and self._is_phase(frame.f_code):
            self._number -= 1
            if self._number == 0:
                self._frame, self._thread = frame, threading.get_ident()

    def _is_phase(self, code: CodeType) -> bool:
        return code.co_name == self._function and Path(code.co_filename).name == self._file


def live(settings: dict[str, Any], fuse: Fuse | None) -> int:
    """One life: the signal that ended it, 0 if it came to its end, and then the fuse's steps on a pipe."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        threading.setprofile(fuse)
        sys.setprofile(fuse)
        simulate(Settings(**settings, resume=Path(settings["logdir"]).exists()))
        sys.setprofile(None)
        os.write(theirs, str(fuse.steps if fuse else 0).encode())
        os._exit(0)
    os.close(theirs)
    _, status = os.waitpid(child, 0)
    steps = int(os.read(ours, 20) or 0)
    os.close(ours)
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a life failed with {os.WEXITSTATUS(status)}")
    return steps


def main() -> None:
    """Run straight once, to see how long each phase is, and then with every moment."""
    settings, moments = (json.loads(Path(path).read_text()) for path in sys.argv[1:])
    straight = {**settings, "logdir": settings["logdir"] + "-straight"}
    straight["save"] = straight["logdir"] + "/model.safetensors"
    length = {}
    for phase in PHASES:
        short = {**straight, "logdir": f"{settings['logdir']}-{phase}", "rounds": 2, "save": ""}
        length[phase] = live(short, Fuse(phase, 1, None))
    lives = [
        live(settings, Fuse(phase, number, int(share * length[phase])))
        for phase, number, share in moments
    ]
    lives.append(min(0, live(settings, None)))
    live(straight, None)
    print(json.dumps({"lengths": length, "lives": lives}))


if __name__ == "__main__":
    main()
