"""Checks alert rules and the dashboard: their expressions with promtool, their metrics in a real scrape.

promtool is the one of Debian's package, unpacked under target/ without installing it.
"""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy/prometheus/alerts.yaml"
TESTS = ROOT / "deploy/prometheus/alerts_test.yaml"
DASHBOARD = ROOT / "deploy/grafana/ferry.json"

# Names that others scrape, too: they are part of what is promised.
PROMISED = """
    nv_inference_request_success nv_inference_request_failure nv_inference_count nv_inference_exec_count
    nv_inference_request_duration_us nv_inference_queue_duration_us nv_inference_compute_input_duration_us
    nv_inference_compute_infer_duration_us nv_inference_compute_output_duration_us
    nv_inference_pending_request_count nv_cache_num_hits_per_model nv_cache_num_misses_per_model
    vllm:num_requests_waiting vllm:num_requests_running vllm:kv_cache_usage_perc vllm:cache_config_info
""".split()

# Told only where there is a GPU with its driver's management library; no scrape of a test has them.
ONLY_ON_GPUS = """
    ferry_device_memory_used_bytes ferry_device_memory_total_bytes ferry_device_utilization_ratio
    ferry_device_temperature_celsius ferry_device_power_watts
""".split()


def promtool(tools):
    """The path of promtool; None when it can't be had."""
    installed = shutil.which("promtool")
    if installed:
        return Path(installed)
    folder = tools / "prometheus"
    program = folder / "usr/bin/promtool"
    if program.exists():
        return program
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "download", "prometheus"], cwd=folder, capture_output=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], capture_output=True)
    return program if program.exists() else None


def expressions():
    """The dashboard's expressions, by panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def names(text):
    return set(re.findall(r"\b(?:ferry|process)_[a-z_]+", text))


def rules(program, check):
    for command in (["check", "rules", RULES], ["test", "rules", TESTS]):
        done = subprocess.run([program, *command], capture_output=True, text=True)
        check(done.returncode == 0, f"promtool {command[0]} {command[1]}: {(done.stdout + done.stderr).strip()[-2000:]}")
    # Rules of the dashboard's expressions, so that promtool parses them.
    parsed = {
        "groups": [
            {
                "name": "dashboard",
                "rules": [
                    {
                        "record": f"panel:{at}",
                        "expr": expression.replace("$__rate_interval", "5m").replace("$model", ".*"),
                    }
                    for at, (_, expression) in enumerate(expressions())
                ],
            }
        ]
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(parsed, file)
        file.flush()
        done = subprocess.run([program, "check", "rules", file.name], capture_output=True, text=True)
    check(done.returncode == 0, f"the dashboard's expressions: {(done.stdout + done.stderr).strip()[-2000:]}")


def dashboard(check):
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    check(len(ids) == len(set(ids)), "the dashboard's panels have ids of their own")
    for panel in board["panels"]:
        place = panel["gridPos"]
        check(place["x"] + place["w"] <= 24, f"the panel '{panel['title']}' is on the grid")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def post(port, path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def scrape(ferry):
    """The metrics page of a server that has had a bit of everything."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fixtures = ROOT / "tests/fixtures"
        shutil.copytree(fixtures / "tiny-bert-embed", folder / "models/tiny-bert-embed/1")
        shutil.copytree(fixtures / "decoders/llama", folder / "models/llama/1")
        (folder / "models/tiny-bert-embed/model.toml").write_text(
            'task = "embed"\n[cache]\nmax_mib = 8\n'
            "[drift]\nenabled = true\nwindow_rows = 50\nlearn_rows = 50\n"
        )
        (folder / "models/llama/model.toml").write_text('task = "generate"\n')
        grpc, http = free_port(), free_port()
        (folder / "ferry.toml").write_text(
            f'[models]\ndirectory = "{folder}/models"\n[grpc]\nport = {grpc}\n[http]\nport = {http}\n'
            f'[admin]\nenabled = false\n[request_log]\nfile = "{folder}/requests.jsonl"\n'
        )
        server = subprocess.Popen(
            [ferry, "serve", "--config", folder / "ferry.toml"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    get(http, "/health/ready")
                    break
                except (urllib.error.URLError, ConnectionError):
                    if server.poll() is not None or time.monotonic() > until:
                        server.kill()
                        raise SystemExit(f"the server does not start: {server.stderr.read()[-2000:]}")
                    time.sleep(0.05)
            for part in range(6):
                texts = [f"text {part} {at}" for at in range(50)]
                post(http, "/v1/embeddings", {"model": "tiny-bert-embed", "input": texts})
            post(http, "/v1/embeddings", {"model": "tiny-bert-embed", "input": "a", "dimensions": 100_000})
            post(http, "/v1/completions", {"model": "llama", "prompt": "once", "max_tokens": 8})
            for _ in range(200):
                page = get(http, "/metrics")
                if re.search(r"^ferry_drift_windows_total\S+ [1-9]", page, re.M):
                    return page
                time.sleep(0.05)
            return page
        finally:
            server.terminate()
            server.wait(30)


def scraped(ferry, check):
    page = scrape(ferry)
    found = set(re.findall(r"^([a-zA-Z_:]+)", page, re.M))
    wanted = {f"alerts.yaml: {name}": name for name in names(RULES.read_text().split("groups:")[1])}
    for panel, expression in expressions():
        wanted |= {f"panel '{panel}': {name}": name for name in names(expression)}
    wanted |= {name: name for name in PROMISED}
    sources = "".join(path.read_text() for path in (ROOT / "src/telemetry").rglob("*.rs"))
    for where, name in sorted(wanted.items()):
        if name in ONLY_ON_GPUS:
            check(f'"{name}"' in sources, f"{where} is a metric that the sources tell of GPUs")
        else:
            check(name in found, f"{where} is in a real scrape")


def check_all(tools, ferry, check, skip):
    dashboard(check)
    program = promtool(tools)
    if program is None:
        skip("alert rules and the dashboard's expressions: promtool can't be had")
    else:
        rules(program, check)
    if ferry is None:
        skip("metrics of rules and dashboard: no --ferry to scrape")
    else:
        scraped(Path(ferry).resolve(), check)
