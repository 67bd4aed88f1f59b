"""Brings NVIDIA's aiperf and runs it. Standard library only.

Its tokenizer is the one of tests/fixtures/decoders/llama, by its folder: named by a model's name it
would be sought on the Hugging Face hub, and HF_HUB_OFFLINE, of all things, breaks folders. It shapes
the prompts only; tokens are counted by the usage that the server reports.
"""

import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "target" / "aiperf-venv"
REQUIREMENTS = HERE / "requirements-aiperf.txt"
TOKENIZER = ROOT / "tests" / "fixtures" / "decoders" / "llama"


class Unavailable(Exception):
    """aiperf can't be installed here; the message says why."""


def find_or_install(pip_options=()):
    """Returns the path of aiperf, installing it under target/ the first time; raises Unavailable."""
    stamp = ENVIRONMENT / "installed.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", *pip_options]
        done = subprocess.run([*pip, "-r", str(REQUIREMENTS)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Unavailable(f"pip could not install {REQUIREMENTS.name}: {done.stderr.strip()}")
        stamp.write_text(REQUIREMENTS.read_text())
    return ENVIRONMENT / "bin" / "aiperf"


def profile(aiperf, url, model, endpoint_type, arguments, timeout_s=300):
    """Runs `aiperf profile`; returns its report (a metric's name to its figures). Raises if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(aiperf), "profile", "--url", url, "--model", model, "--endpoint-type", endpoint_type,
            "--tokenizer", str(TOKENIZER), "--ui", "none", "--artifact-dir", folder, *arguments,
        ]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=timeout_s)
        report = Path(folder) / "profile_export_aiperf.json"
        if done.returncode != 0 or not report.exists():
            raise RuntimeError(f"aiperf left with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return json.loads(report.read_text())
