#!/usr/bin/env bash
# Runs fuzz targets for some seconds each, and says what came of it: scripts/fuzz.sh SECONDS [TARGET…].
# Inputs that break something are left in fuzz/artifacts; the exit code is then 1. docs/fuzzing.md.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}
shift

if ! cargo +nightly --version >/dev/null 2>&1 || ! command -v cargo-fuzz >/dev/null; then
    echo "nightly Rust and cargo-fuzz are needed (rustup toolchain install nightly, cargo install cargo-fuzz)" >&2
    exit 2
fi
# The dependencies that Ferry is built with, and no newer ones.
cp Cargo.lock fuzz/Cargo.lock
if [ $# = 0 ]; then
    mapfile -t targets < <(cargo +nightly fuzz list)
    set -- "${targets[@]}"
fi
cargo +nightly fuzz build

mkdir -p fuzz/logs
broken=0
printf '%-18s %10s %8s %8s %8s %7s\n' target inputs per_s edges features corpus
for target in "$@"; do
    log=fuzz/logs/$target.log
    result=ok
    # ASan's own quarantine and shadow come on top of what a target takes.
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=30 -rss_limit_mb=6144 \
        -malloc_limit_mb=2048 -print_final_stats=1 -verbosity=1 >"$log" 2>&1 || { result=BROKEN; broken=1; }
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    last() { grep -o "$1: [0-9]*" "$log" | tail -1 | cut -d' ' -f2; }
    printf '%-18s %10s %8s %8s %8s %7s %s\n' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$(last cov)" "$(last ft)" "$(last corp)" "$result"
done
exit $broken
