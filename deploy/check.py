#!/usr/bin/env python3
"""Checks the Dockerfiles and the manifests, as far as that goes without an engine and a cluster.

    python3 deploy/check.py [--ferry target/debug/ferry]

- Dockerfiles: hadolint; what they copy is there and not ignored, and is all that Cargo and the sources
  name.
- Kubernetes' own kinds: their schemas (kubernetes-validate, unknown fields refused).
- KServe's: the fields and types of its Python package. KEDA's: the validator of an npm package.
- Between files: metrics that are scaled by are exposed, probes and ports are the server's, and the time
  to go down suffices. With --ferry, the ConfigMap's ferry.toml is one that the server takes.
- Alert rules and the dashboard: promtool (observability.py), and with --ferry each of their metrics in
  the scrape of a server that has had a bit of everything.

What can't be checked since a tool can't be had says SKIPPED, and fails nothing.
"""

import argparse
import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import observability

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "deploy"
TOOLS = ROOT / "target" / "deploy-tools"
KSERVE = "kserve==0.21.0"
KEDA = "@kubernetes-models/keda@2.0.0"

wrong, skipped, passed = [], [], []


def check(holds, what):
    (passed if holds else wrong).append(what)


def skip(what):
    skipped.append(what)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def tools():
    """The environment's folder of programs; None when it can't be had."""
    wanted = (HERE / "requirements.txt").read_text()
    stamp = TOOLS / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(TOOLS, with_pip=True, clear=True)
        done = run(TOOLS / "bin/python", "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt")
        if done.returncode != 0:
            return None
        stamp.write_text(wanted)
    return TOOLS / "bin"


def yaml_documents(programs, path):
    """A file's documents, read by the environment's PyYAML."""
    code = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))"
    done = run(programs / "python", "-c", code, path)
    if done.returncode != 0:
        wrong.append(f"{path.relative_to(ROOT)}: {done.stderr.splitlines()[-1]}")
        return []
    return json.loads(done.stdout)


def dockerfiles(programs):
    for path in sorted((ROOT / "docker").glob("Dockerfile*")):
        name = path.relative_to(ROOT)
        done = run(programs / "hadolint", path)
        check(done.returncode == 0, f"{name}: hadolint {done.stdout.strip()}")
        text = path.read_text()
        copied = [
            source
            for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)
            for source in line.split()[:-1]
            if "$" not in source
        ]
        for source in copied:
            check((ROOT / source).exists(), f"{name}: COPY {source} is there")
            check(not ignored(source), f"{name}: COPY {source} is not ignored")
        if path.name in ("Dockerfile", "Dockerfile.cuda"):
            for needed in named_by_the_build():
                covered = any(needed == source or needed.startswith(f"{source}/") for source in copied)
                check(covered and not ignored(needed), f"{name}: {needed}, which the build names, is copied")
    done = run("sh", "-n", ROOT / "docker/rootfs.sh")
    check(done.returncode == 0, f"docker/rootfs.sh is a script {done.stderr.strip()}")


def ignored(path):
    """Whether .dockerignore keeps a path from the builder: its last line that matches decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        pattern = pattern.lstrip("!").rstrip("/").removeprefix("**/")
        parts = Path(path).parts
        prefixes = ["/".join(parts[: at + 1]) for at in range(len(parts))]
        if any(fnmatch.fnmatch(prefix, pattern) for prefix in prefixes):
            result = not keep
    return result


def named_by_the_build():
    """Files that Cargo.toml's targets and `include_str!` name."""
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    yield from ("Cargo.toml", "Cargo.lock", "build.rs", cargo["lib"]["path"], cargo["bin"][0]["path"])
    yield from re.findall(r'#\[path = "([^"]+)"\]', (ROOT / "build.rs").read_text())
    for patch in cargo.get("patch", {}).get("crates-io", {}).values():
        yield f"{patch['path']}/Cargo.toml"
    yield from (bench.get("path", f"benches/{bench['name']}.rs") for bench in cargo.get("bench", []))
    for source in (ROOT / "src").rglob("*.rs"):
        for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            named = str((source.parent / name).resolve().relative_to(ROOT))
            # Golden files are for the unit tests, which an image's build does not have.
            if not named.startswith("tests/"):
                yield named
    yield from (str(path.relative_to(ROOT)) for path in (ROOT / "proto").rglob("*.proto"))


def core_kinds(programs, path):
    done = run(programs / "kubernetes-validate", "--strict", path)
    check(done.returncode == 0, f"{path.relative_to(ROOT)}: {(done.stdout + done.stderr).strip()}")


def as_pod(container):
    """A pod around a container, so that the core schema can judge it."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "check"}, "spec": {"containers": [container]}}
    path = TOOLS / "pod.json"
    path.write_text(json.dumps(pod))
    return path


class KServe:
    """The classes of KServe's package, read without importing it: fields, their JSON names and types."""

    def __init__(self, wheel):
        self.classes = {}
        with zipfile.ZipFile(wheel) as package:
            for name in package.namelist():
                if name.startswith("kserve/models/v1"):
                    for node in ast.parse(package.read(name)).body:
                        if isinstance(node, ast.ClassDef):
                            self.classes[node.name] = self.fields(node)

    @staticmethod
    def fields(node):
        tables = {
            target.id: ast.literal_eval(part.value)
            for part in node.body
            if isinstance(part, ast.Assign)
            for target in part.targets
            if target.id in ("openapi_types", "attribute_map")
        }
        return {tables["attribute_map"][field]: kind for field, kind in tables["openapi_types"].items()}

    def judge(self, value, kind, where):
        of_list, of_map = re.fullmatch(r"list\[(.+)\]", kind), re.fullmatch(r"dict\(str, (.+)\)", kind)
        plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}
        if of_list:
            check(isinstance(value, list), f"{where} is a list")
            for at, item in enumerate(value if isinstance(value, list) else []):
                self.judge(item, of_list[1], f"{where}[{at}]")
        elif of_map:
            check(isinstance(value, dict), f"{where} is a map")
            for key, item in (value.items() if isinstance(value, dict) else []):
                self.judge(item, of_map[1], f"{where}.{key}")
        elif kind in plain:
            check(isinstance(value, plain[kind]), f"{where} is of type {kind}")
        elif kind in self.classes:
            for key, item in value.items():
                known = key in self.classes[kind]
                check(known, f"{where}.{key} is a field of {kind}")
                if known:
                    self.judge(item, self.classes[kind][key], f"{where}.{key}")
        # Types of Kubernetes' own are judged by its schemas.


def kserve(programs, documents):
    wheels = list(TOOLS.glob("kserve-*.whl"))
    if not wheels:
        run(programs / "python", "-m", "pip", "download", "-q", "--no-deps", "-d", TOOLS, KSERVE)
        wheels = list(TOOLS.glob("kserve-*.whl"))
    if not wheels:
        return skip(f"KServe's kinds: {KSERVE} can't be had")
    package = KServe(wheels[0])
    for document in documents:
        version = document["apiVersion"].split("/")[1]
        kind = version[0].upper() + version[1:] + document["kind"]
        check(kind in package.classes, f"{kind} is a kind of KServe's")
        package.judge(document, kind, document["kind"])
        for container in document["spec"].get("containers", []):
            core_kinds(programs, as_pod(container))


def keda(documents):
    folder = TOOLS / "keda"
    if shutil.which("npm") is None:
        return skip("KEDA's kinds: there is no npm")
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = run("npm", "install", "--silent", "--prefix", folder, KEDA)
        if done.returncode != 0:
            return skip(f"KEDA's kinds: {KEDA} can't be had")
    code = """
        import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1";
        new ScaledObject(JSON.parse(process.argv[1])).validate();
    """
    for document in documents:
        done = run("node", "--input-type=module", "-e", code, json.dumps(document), cwd=folder)
        check(done.returncode == 0, f"{document['kind']}: KEDA's validator {done.stderr.strip()[-500:]}")
    known = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod",
             "fallback", "advanced", "triggers"}
    for document in documents:
        check(set(document["spec"]) <= known, "ScaledObject: its fields are KEDA's")


def between_files(all_documents, ferry):
    sources = "".join(path.read_text() for path in (ROOT / "src/telemetry").rglob("*.rs"))
    exposed = set(re.findall(r'"(ferry_[a-z_]+)"', sources))
    for name, document in all_documents:
        text = json.dumps(document)
        if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            for metric in set(re.findall(r"ferry_[a-z_]+", text)):
                family = re.sub(r"_(bucket|sum|count)$", "", metric)
                check(family in exposed, f"{name}: {metric} is a metric of Ferry's")
    http = (ROOT / "src/api/http/mod.rs").read_text()
    for name, document in all_documents:
        spec = document.get("spec", {})
        containers = spec.get("containers") or spec.get("template", {}).get("spec", {}).get("containers", [])
        for container in containers:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            check(set(ports.values()) <= {8000, 8001}, f"{name}: its ports are the server's")
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[kind]["httpGet"]
                check(f'"{probe["path"]}"' in http, f"{name}: {kind} asks for a page that there is")
                check(ports.get(probe["port"], probe["port"]) == 8000, f"{name}: {kind} asks the HTTP port")
            security = container["securityContext"]
            locked = security["readOnlyRootFilesystem"] and security["runAsNonRoot"]
            check(locked and security["capabilities"] == {"drop": ["ALL"]}, f"{name}: its container is locked down")
    config = HERE / "kubernetes/ferry.toml"
    drain = tomllib.loads(config.read_text())["shutdown"]["drain_seconds"]
    pod = next(document for _, document in all_documents if document["kind"] == "Deployment")["spec"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    check(pod["terminationGracePeriodSeconds"] >= hook + drain + 5, "the grace period covers preStop and drain")
    if ferry is None:
        skip("ferry.toml: no --ferry to read it with")
    else:
        done = run(ferry, "serve", "--config", config, "--print-config")
        check(done.returncode == 0, f"ferry.toml: the server takes it {done.stderr.strip()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, help="a built binary, to read the ConfigMap with")
    options = parser.parse_args()
    programs = tools()
    if programs is None:
        print("SKIPPED: Dockerfiles and manifests: the tools of deploy/requirements.txt can't be installed")
        return 0
    dockerfiles(programs)
    all_documents, of_kserve, of_keda = [], [], []
    for path in sorted(HERE.rglob("*.yaml")):
        if path.parent.name == "prometheus":
            continue
        documents = yaml_documents(programs, path)
        name = str(path.relative_to(ROOT))
        if path.name != "kustomization.yaml":
            all_documents += [(name, document) for document in documents]
        if path.parent.name == "kserve":
            of_kserve += documents
        elif path.parent.name == "keda":
            of_keda += documents
        elif path.name != "kustomization.yaml":
            core_kinds(programs, path)
    kserve(programs, of_kserve)
    keda(of_keda)
    between_files(all_documents, options.ferry)
    observability.check_all(TOOLS, options.ferry, check, skip)
    kustomization = yaml_documents(programs, HERE / "kubernetes/kustomization.yaml")[0]
    on_disk = {path.name for path in (HERE / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    check(set(kustomization["resources"]) == on_disk, "kustomization.yaml lists every manifest beside it")
    if shutil.which("kubectl"):
        done = run("kubectl", "kustomize", HERE / "kubernetes")
        check(done.returncode == 0, f"kubectl kustomize {done.stderr.strip()}")
    else:
        skip("rendering with kustomize: there is no kubectl")
    for what in skipped:
        print(f"SKIPPED: {what}")
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"{len(passed)} passed, {len(wrong)} failed, {len(skipped)} skipped")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
