"""A Python environment for each peer, so that what one of them needs does not change another."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / "target" / "peers"
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"

# Triton's embedded interpreter is built for an early 3.11 (3.12, …) and stumbles over the standard library
# of a late one; the system's goes with it more often.
BASES = {"pytriton_server": "/usr/bin/python3"}


class Unavailable(Exception):
    """A peer can't be had or does not run here; why is what it says."""


def python_for(name, given):
    """The interpreter that has what `requirements/<name>.txt` pins: a given one, or one made here.

    Made anew when the pins change. Raises Unavailable with the last words of pip.
    """
    if name in given:
        return given[name]
    wanted = (REQUIREMENTS / f"{name}.txt").read_text()
    home = HOME / f"venv-{name}"
    stamp, python = home / "installed.txt", str(home / "bin" / "python")
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {home}", flush=True)
    base = BASES.get(name, sys.executable)
    base = base if os.access(base, os.X_OK) else sys.executable
    subprocess.run([base, "-m", "venv", "--clear", "--without-pip", str(home)], check=True)
    # This interpreter's pip, into that environment: the base may have none of its own.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(REQUIREMENTS / f"{name}.txt")], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise Unavailable(f"pip: {lines[-1]}")
    stamp.write_text(wanted)
    return python


def parse_python(text):
    """NAME=PATH of an option."""
    name, _, path = text.partition("=")
    if not path or not (REQUIREMENTS / f"{name}.txt").exists():
        known = ", ".join(sorted(one.stem for one in REQUIREMENTS.glob("*.txt")))
        sys.exit(f"--python {text}: allowed: NAME=INTERPRETER, NAME one of {known}")
    return name, path
