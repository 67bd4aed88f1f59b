"""Brings NVIDIA's perf_analyzer and runs it. Standard library only.

The binary comes from the package registry and depends on the machine's glibc, so there are two ways
to it (see the two requirements-perf files). FERRY_PERF_ANALYZER names a binary to use instead.
"""

import csv
import os
import platform
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "target" / "perf-venv"
DEBIAN_LIBRARY = "libb64-0d"


class Unavailable(Exception):
    """perf_analyzer can't run here; the message says why."""


@dataclass
class PerfAnalyzer:
    """A perf_analyzer that has been seen to start."""

    binary: Path
    library_path: str
    version: str

    def run(self, arguments, timeout_s):
        """Runs it; returns the completed process with stdout and stderr as text."""
        return subprocess.run(
            [str(self.binary), *arguments],
            env=environment(self.library_path),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def environment(library_path):
    env = dict(os.environ)
    env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [library_path, env.get("LD_LIBRARY_PATH")]))
    return env


def find_or_install(pip_options=()):
    """Returns a PerfAnalyzer, installing it under target/ the first time; raises Unavailable."""
    given = os.environ.get("FERRY_PERF_ANALYZER") or shutil.which("perf_analyzer")
    if given:
        return checked(Path(given), "")
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable(f"perf_analyzer has no build for {sys.platform} on {platform.machine()}")
    glibc = tuple(int(part) for part in platform.libc_ver()[1].split(".")[:2])
    if glibc >= (2, 38):
        install("requirements-perf.txt", pip_options)
        binary = next(ENVIRONMENT.glob("lib/python3*/site-packages/perf_analyzer/bin/perf_analyzer"))
        return checked(binary, "")
    if glibc < (2, 34):
        raise Unavailable(f"perf_analyzer needs glibc 2.34; found {'.'.join(map(str, glibc))}")
    install("requirements-perf-older-glibc.txt", ["--no-deps", *pip_options])
    cuda = next(ENVIRONMENT.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib"))
    return checked(ENVIRONMENT / "bin" / "perf_analyzer", os.pathsep.join([str(cuda), debian_library()]))


def install(requirements, pip_options):
    wanted = HERE / requirements
    stamp = ENVIRONMENT / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", *pip_options]
    done = subprocess.run([*pip, "-r", str(wanted)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"pip could not install {requirements}: {done.stderr.strip()}")
    stamp.write_text(wanted.read_text())


def debian_library():
    """The folder of libb64, unpacked from Debian's package; nothing is installed on the machine."""
    folder = ENVIRONMENT / "debian"
    found = list(folder.rglob("libb64.so.0d"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", DEBIAN_LIBRARY], cwd=folder, check=True, capture_output=True)
            package = next(folder.glob("*.deb"))
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            raise Unavailable(f"can't unpack {DEBIAN_LIBRARY} (apt-get update may help): {error}") from error
        found = list(folder.rglob("libb64.so.0d"))
    return str(found[0].parent)


def checked(binary, library_path):
    done = subprocess.run([str(binary), "--version"], env=environment(library_path), capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    if "Perf Analyzer Version" not in said:
        raise Unavailable(f"{binary} does not start: {said}")
    return PerfAnalyzer(binary, library_path, said.splitlines()[-1].removeprefix("Perf Analyzer Version ").split()[0])


def read_report(path):
    """The rows of perf_analyzer's CSV report, one per load, numbers as floats."""
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
