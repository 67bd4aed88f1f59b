#!/usr/bin/env bash
# Runs fuzz targets for some seconds each, and says what came of it: scripts/fuzz.sh SECONDS [TARGET…].
# Inputs that break something are left in fuzz/artifacts; the exit code is then 1. See docs/fuzzing.md.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}
shift

if ! cargo +nightly --version >/dev/null 2>&1 || ! command -v cargo-fuzz >/dev/null; then
    echo "nightly Rust and cargo-fuzz are needed (rustup toolchain install nightly, cargo install cargo-fuzz)" >&2
    exit 2
fi
if [ $# = 0 ]; then
    mapfile -t targets < <(grep -oP '(?<=target\()\s*"\K\w+' <(tr '\n' ' ' <fuzz/targets/mod.rs))
    set -- "${targets[@]}"
fi
# The dependencies that Ferry is built with, and no newer ones.
cp Cargo.lock fuzz/Cargo.lock
cargo +nightly fuzz build hostile
binary=$(ls fuzz/target/*/release/hostile)

mkdir -p fuzz/logs
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0}
broken=0
printf '%-18s %10s %8s %8s %8s %7s\n' target inputs per_s edges features corpus
for target in "$@"; do
    log=fuzz/logs/$target.log
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    result=ok
    # The server's threads and statics outlive an input; they are no leaks.
    FERRY_FUZZ_TARGET=$target FERRY_FUZZ_SEEDS=fuzz/corpus/$target \
        "$binary" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" \
        -max_total_time="$seconds" -timeout=30 -rss_limit_mb=6144 -malloc_limit_mb=2048 -detect_leaks=0 \
        -print_final_stats=1 >"$log" 2>&1 || { result=BROKEN; broken=1; }
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    last() { grep -o "$1: [0-9]*" "$log" | tail -1 | cut -d' ' -f2; }
    printf '%-18s %10s %8s %8s %8s %7s %s\n' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$(last cov)" "$(last ft)" "$(last corp)" "$result"
done
exit $broken
