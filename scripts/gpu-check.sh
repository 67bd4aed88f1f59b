#!/usr/bin/env bash
# Everything that can only be shown on an NVIDIA GPU, in one go, as one report (Markdown and JSON):
# tests on cuda:0, agreement with the CPU, compute-sanitizer over the kernels, and the table of speeds.
#
#   scripts/gpu-check.sh                                  # builds, then checks
#   scripts/gpu-check.sh --binary ferry                   # takes a build that was carried here
#   scripts/gpu-check.sh --llama-server PATH              # also beside llama.cpp
#   scripts/gpu-check.sh --report FOLDER                  # target/gpu-check by default
#
# A stage that can't run says SKIPPED and why; one that fails is in the report and in the exit status.
# Without a GPU it is a dry run: what needs none is done, the rest is skipped.
set -uo pipefail
cd "$(dirname "$0")/.."

binary= llama_server= report=target/gpu-check models=models
while (($#)); do
    case $1 in
        --binary) binary=$(realpath "${2:?}"); shift ;;
        --llama-server) llama_server=${2:?}; shift ;;
        --report) report=${2:?}; shift ;;
        --models) models=${2:?}; shift ;;
        -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit ;;
        *) echo "gpu-check: unknown argument '$1' (see --help)" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$report"
report=$(realpath "$report")
models=$(realpath "$models")
: >"$report/stages.tsv"
work=$(mktemp -d)
server=
stop_server() { [[ -z $server ]] || { kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; server=; }; }
trap 'stop_server; rm -rf "$work"' EXIT

# How a stage is run and noted.

# note STAGE RESULT SECONDS WHAT
note() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4//[$'\t\n']/ }" >>"$report/stages.tsv"
    printf '%-28s %s  %s\n' "$1" "$2" "$4"
}
skip() { note "$1" SKIPPED 0 "$2"; }
# stage NAME WHAT COMMAND...: its output goes to NAME.log
stage() {
    local name=$1 what=$2 begun=$SECONDS status
    shift 2
    "$@" >"$report/$name.log" 2>&1
    status=$?
    if ((status == 0)); then
        note "$name" PASSED $((SECONDS - begun)) "$what"
    else
        note "$name" FAILED $((SECONDS - begun)) "$what: exit $status; $(grep -v '^ *$' "$report/$name.log" | tail -n 1 | cut -c -160)"
    fi
    return $status
}

# serve FOLDER ARGUMENTS...: a server on free ports; sets grpc and http
serve() {
    local folder=$1
    shift
    stop_server
    "$binary" serve --models "$folder" --host 127.0.0.1 --grpc-port 0 --http-port 0 --admin-port 0 "$@" \
        >"$work/serve.log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        kill -0 "$server" 2>/dev/null || { cat "$work/serve.log"; server=; return 1; }
        # Colours end where the value begins
        local line
        line=$(sed 's/\x1b\[[0-9;]*m//g' "$work/serve.log" | grep -m 1 ' serving ') && {
            grpc=$(sed -E 's/.* grpc=([^ ]+).*/\1/' <<<"$line")
            http=$(sed -E 's/.* http=([^ ]+).*/\1/' <<<"$line")
            return 0
        }
        sleep 0.2
    done
    echo "the server was not ready within two minutes"
    cat "$work/serve.log"
    return 1
}

# A folder with the same model once for each device: alike but for the manifest's device.
twins() { # NAME FOLDER
    local name=$1 folder=$2 device
    for device in cpu cuda; do
        mkdir -p "$folder/$name-$device"
        ln -sfn "$models/$name/1" "$folder/$name-$device/1"
        cp "$models/$name/model.toml" "$folder/$name-$device/"
        local value=$device
        [[ $device == cuda ]] && value=cuda:0
        if grep -q '^\[resources\]' "$folder/$name-$device/model.toml"; then
            sed -i "s/^\[resources\]/&\ndevice = \"$value\"/" "$folder/$name-$device/model.toml"
        else
            printf '\n[resources]\ndevice = "%s"\n' "$value" >>"$folder/$name-$device/model.toml"
        fi
    done
}

# What there is.

gpu=no
if command -v nvidia-smi >/dev/null && nvidia-smi -L >"$report/machine.log" 2>&1 && [[ -s $report/machine.log ]]; then
    gpu=yes
    nvidia-smi >>"$report/machine.log" 2>&1
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-$capability}
    note machine PASSED 0 "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | paste -sd ';')"
else
    skip machine "no GPU (nvidia-smi finds none): a dry run"
fi

wanted=(--with sanitizer)
[[ $gpu == yes ]] && wanted+=(--with libraries)
if stage toolkit "nvcc, compute-sanitizer and libraries from PyPI" scripts/cuda-toolkit.sh "${wanted[@]}"; then
    eval "$(scripts/cuda-toolkit.sh "${wanted[@]}" 2>/dev/null)"
    export LD_LIBRARY_PATH="$CUDA_HOME/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    sanitizer=$(find "$CUDA_HOME" -name compute-sanitizer -type f -perm -u+x 2>/dev/null | head -n 1)
fi
sanitizer=${sanitizer:-$(command -v compute-sanitizer || true)}

# The build.

if [[ -n $binary ]]; then
    stage build "a carried build, $binary" "$binary" --version
elif ! command -v cargo >/dev/null; then
    skip build "no cargo, and no --binary"
elif stage build "cargo build --release --features cuda, CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-unset}" \
    cargo build --release --features cuda --bin ferry; then
    binary=$PWD/target/release/ferry
fi
[[ -x $binary ]] || binary=

if ! command -v cargo >/dev/null; then
    skip kernel-resources "no cargo"
else
    stage kernel-resources "registers, spills and shared memory within kernels/resources.toml" \
        cargo test --features cuda --test it -- kernel_resources::
fi

# A start without a GPU.

fallback() {
    CUDA_VISIBLE_DEVICES='' serve "$models" --model minilm --device auto || return 1
    sed 's/\x1b\[[0-9;]*m//g' "$work/serve.log"
    # An answer, from whatever there is to ask with.
    python3 - "http://$http/v1/embeddings" <<'PYTHON' || return 1
import json, sys, urllib.request
body = json.dumps({"model": "minilm", "input": "All aboard!"}).encode()
request = urllib.request.Request(sys.argv[1], body, {"content-type": "application/json"})
vector = json.load(urllib.request.urlopen(request, timeout=60))["data"][0]["embedding"]
assert len(vector) == 384 and abs(sum(x * x for x in vector) - 1) < 1e-3, vector
print("answered with a vector of", len(vector))
PYTHON
    stop_server
    [[ $(grep -c 'running on the CPU' "$work/serve.log") == 1 ]] || { echo "expected one warning"; return 1; }
}
refusal() {
    local said
    said=$(CUDA_VISIBLE_DEVICES='' "$binary" serve --models "$models" --device cuda:0 2>&1) && { echo "it started"; return 1; }
    echo "$said"
    grep -q 'is missing' <<<"$said"
}
if [[ -z $binary ]]; then
    skip fallback "no binary"
    skip refusal "no binary"
elif [[ ! -e $models/minilm/1 ]]; then
    skip fallback "no MiniLM (python3 models/fetch.py)"
    stage refusal "device = cuda:0 demanded and absent is a start error" refusal
else
    stage fallback "MiniLM served on the CPU by the CUDA build, with one warning" fallback
    stage refusal "device = cuda:0 demanded and absent is a start error" refusal
fi

# On the GPU.

need_gpu() { # STAGE: whether it can run
    if [[ $gpu == no ]]; then skip "$1" "no GPU"; return 1; fi
    if [[ -z $binary ]]; then skip "$1" "no binary"; return 1; fi
}

if need_gpu tests; then
    if command -v cargo >/dev/null; then
        # Servers of the tests take device = auto, which is cuda:0 here; golden files set the tolerances.
        stage tests "all tests, models on cuda:0" cargo test --features cuda
    else
        skip tests "no cargo"
    fi
fi

agreement() { # NAME REQUIREMENTS...
    local name=$1
    shift
    twins "$name" "$work/twins-$name"
    serve "$work/twins-$name" || return 1
    local requirements=()
    for requirement in "$@"; do requirements+=(--require "$requirement"); done
    "$binary" compare --server "$grpc" "$name-cpu" "$name-cuda" --limit 200 \
        --json "$report/agreement-$name.json" "${requirements[@]}"
}
if need_gpu agreement; then
    if [[ -e $models/minilm/1 ]]; then
        stage agreement-minilm "embeddings on cuda:0 and on the CPU" \
            agreement minilm min_mean_cosine=0.9999 min_cosine_p5=0.9995
    else
        skip agreement-minilm "no MiniLM"
    fi
    if [[ -e $models/smollm2-135m/1 ]]; then
        stage agreement-smollm2 "logits on cuda:0 and on the CPU" \
            agreement smollm2-135m min_top1_agreement=0.98
    else
        skip agreement-smollm2 "no SmolLM2"
    fi
    stop_server
fi

sanitize() { # TOOL
    # `ferry warm` loads a model, runs its warm-up and its recorded inputs, and ends.
    FERRY_DEVICE=cuda:0 "$sanitizer" --tool "$1" --error-exitcode 9 --kernel-name-exclude regex=cublas \
        "$binary" warm minilm --models "$work/twins-minilm/../sanitize"
}
if need_gpu sanitizer; then
    if [[ -z $sanitizer ]]; then
        skip sanitizer "no compute-sanitizer"
    elif [[ ! -e $models/minilm/1 ]]; then
        skip sanitizer "no MiniLM"
    else
        mkdir -p "$work/sanitize/minilm" "$work/twins-minilm"
        ln -sfn "$models/minilm/1" "$work/sanitize/minilm/1"
        { cat "$models/minilm/model.toml"; printf '\n[resources]\ndevice = "cuda:0"\n'; } >"$work/sanitize/minilm/model.toml"
        for tool in memcheck racecheck synccheck initcheck; do
            stage "sanitizer-$tool" "compute-sanitizer --tool $tool over MiniLM's kernels" sanitize "$tool"
        done
    fi
fi

bench() { # NAME DEVICE ARGUMENTS...
    local name=$1 device=$2
    shift 2
    serve "$models" --model "$name" --device "$device" || return 1
    "$binary" bench --help | grep -q -- '--url' && at=--url || at=--server
    "$binary" bench --model "$name" "$at" "http://$grpc" --json "$@" | tee "$report/bench-$name-$device.json"
}
for device in cpu cuda:0; do
    [[ $device == cpu ]] || need_gpu "bench-minilm-$device" || continue
    if [[ -z $binary || ! -e $models/minilm/1 ]]; then skip "bench-minilm-$device" "no binary or no MiniLM"; continue; fi
    rounds=5 seconds=3
    [[ $gpu == no ]] && rounds=1 seconds=1
    stage "bench-minilm-$device" "ferry bench, closed loop, 1, 8, 32 and 128 clients" \
        bench minilm "$device" --clients 1,8,32,128 --rounds $rounds --seconds $seconds
done
if need_gpu bench-rates; then
    if "$binary" bench --help | grep -q -- '--rate'; then
        stage bench-rates "p99 at fixed rates, open loop" bench minilm cuda:0 --rate 100,1000,5000
    else
        skip bench-rates "this ferry bench has no --rate"
    fi
fi
stop_server

sentence_transformers() {
    python3 - "$1" benches/sentences.txt "$models/minilm/1" <<'PYTHON'
import json, sys, time
from sentence_transformers import SentenceTransformer
device, texts, folder = sys.argv[1], open(sys.argv[2]).read().splitlines(), sys.argv[3]
model = SentenceTransformer(folder, device=device)
if device != "cpu":
    model.half()
tokens = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)
figures = {}
for batch in (1, 8, 32, 128):
    model.encode(texts[:batch], batch_size=batch)
    begun, rounds = time.perf_counter(), 0
    while time.perf_counter() - begun < 5:
        model.encode(texts, batch_size=batch)
        rounds += 1
    figures[batch] = {"tokens_per_second": tokens * rounds / (time.perf_counter() - begun)}
print(json.dumps({"device": device, "batch": figures}))
PYTHON
}
if need_gpu sentence-transformers; then
    if python3 -c 'import sentence_transformers' 2>/dev/null; then
        stage sentence-transformers "the same sentences by sentence-transformers on the GPU" sentence_transformers cuda
    else
        skip sentence-transformers "not installed (pip install sentence-transformers)"
    fi
fi

if need_gpu llama-server; then
    if [[ -z $llama_server ]]; then
        skip llama-server "no --llama-server"
    else
        stage llama-server "decode and prefill beside llama.cpp, same GGUF files" \
            env FERRY_DEVICE=cuda:0 python3 benches/llama_server.py --llama-server "$llama_server"
    fi
fi

# The report.

python3 - "$report" "$(git rev-parse --short HEAD 2>/dev/null)" "$gpu" <<'PYTHON'
import datetime, json, pathlib, platform, sys
folder, revision, gpu = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
stages = [dict(zip(("stage", "result", "seconds", "what"), line.split("\t")))
          for line in (folder / "stages.tsv").read_text().splitlines()]
figures = {}
for path in sorted(folder.glob("*.json")):
    if path.name != "report.json":
        try:
            figures[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            figures[path.stem] = {"unreadable": str(error)}
when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
report = {"when": when, "revision": revision, "machine": platform.machine(), "gpu": gpu == "yes",
          "stages": stages, "figures": figures}
(folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
lines = ["# GPU check", "", f"{when}, revision {revision}, "
         + ("on a GPU" if gpu == "yes" else "**a dry run: no GPU was here, nothing ran on one**"), "",
         "| stage | result | s | what |", "| --- | --- | --- | --- |"]
lines += [f"| {s['stage']} | {s['result']} | {s['seconds']} | {s['what'].replace('|', '/')} |" for s in stages]
for name, found in figures.items():
    lines += ["", f"## {name}", "", "```json", json.dumps(found, indent=1)[:20000], "```"]
(folder / "report.md").write_text("\n".join(lines) + "\n")
PYTHON
echo "report: $report/report.md"
! grep -q $'\tFAILED\t' "$report/stages.tsv"
