"""Which files of the library a command enters: how far a reader has to go to follow it.

    python benchmarks/entered_files.py

Each command runs on a few synthetic pages in a process of its own. A file counts as entered when
one of its functions was called, in whichever thread; running its top level on import is not
enough.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

OFFLINE = "--weights random --precision fp32"
COMMANDS = {
    "extract": f"extract drawn/manifest.csv --cache features.h5 {OFFLINE}",
    "fit-head": "fit-head features.h5 --head both",
    "fit-head --sweep": "fit-head features.h5 --sweep default",
    "finetune": f"finetune drawn/manifest.csv --size 64 --epochs 1 --batch-size 8 {OFFLINE}",
    "compare": "compare runs/*",
    "predict": "predict runs/*linear* drawn/images/test*.jpg",
}
ENTERED = "entered: "


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame runs, or was called by, the top level of a module or class."""
    while frame and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"] != "__main__"


def trace(words: list[str]) -> None:
    """Run one command in this process and print the library's files that it entered."""
    import ecgfeat
    from ecgfeat.cli import main

    library = f"{Path(ecgfeat.__file__).parent}/"
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_ours = code.co_filename.startswith(library)
        if is_ours and code not in codes and not is_importing(frame):
            codes.add(code)

    threading.setprofile(note)
    sys.setprofile(note)
    sys.argv = ["ecgfeat", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    entered = {code.co_filename.removeprefix(library) for code in codes}
    for name in sorted(entered):
        print(f"{ENTERED}{name}", file=sys.stderr)


def main() -> None:
    if sys.argv[1:]:
        trace(sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        synth = "synth drawn --train 24 --test 12"
        for name, line in {"synth": synth, **COMMANDS}.items():
            words = [
                str(path)
                for word in line.split()
                for path in (sorted(Path(folder).glob(word)) if "*" in word else [word])
            ]
            command = [sys.executable, str(Path(__file__).resolve()), *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{line}\n{done.stderr}")
            lines = done.stderr.splitlines()
            found = [text.removeprefix(ENTERED) for text in lines if text.startswith(ENTERED)]
            if name in COMMANDS:
                print(f"{name}: {len(found)} files\n    {' '.join(found)}")


if __name__ == "__main__":
    main()
