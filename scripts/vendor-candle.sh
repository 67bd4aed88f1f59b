#!/usr/bin/env bash
# Makes vendor/candle-core/ and vendor/candle-core.sha256 from the crate that crates.io serves: its
# sources as they are, and one word of Cargo.toml changed (vendor/README.md says why).
#
#   scripts/vendor-candle.sh           # writes them
#   scripts/vendor-candle.sh --check   # writes nothing; fails when they are not what it would write
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.11.1
# As crates.io's index has it
checksum=d11c8be87cfbaef9ebb62fb3f850d1fc8e00cc1d11d393fdbe55a4d5c2cdb325

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Cargo knows where its registry is: a package that depends on nothing else brings it.
mkdir -p "$work/asking/src"
touch "$work/asking/src/lib.rs"
cat >"$work/asking/Cargo.toml" <<END
[package]
name = "asking"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=$version"
END
cargo fetch --quiet --manifest-path "$work/asking/Cargo.toml"
crate=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/cache" -name "candle-core-$version.crate" | head -n 1)
cp "$crate" "$work/crate"
echo "$checksum  $work/crate" | sha256sum --check --quiet
tar -xzf "$work/crate" -C "$work"

mkdir "$work/vendor"
made=$work/vendor/candle-core
mkdir "$made"
cp -r "$work/candle-core-$version"/{Cargo.toml,LICENSE,README.md,src} "$made/"
(cd "$made" && find . -type f | LC_ALL=C sort | xargs sha256sum) >"$work/vendor/candle-core.sha256"
[[ $(grep -c '"dynamic-linking"' "$made/Cargo.toml") == 1 ]] || {
    echo "vendor-candle: expected the word once in candle-core's Cargo.toml" >&2
    exit 1
}
sed -i 's/"dynamic-linking"/"dynamic-loading"/' "$made/Cargo.toml"

if [[ ${1:-} == --check ]]; then
    diff -r "$made" vendor/candle-core
    diff "$work/vendor/candle-core.sha256" vendor/candle-core.sha256
    echo "vendor/candle-core is candle-core $version of crates.io but for that word"
else
    rm -rf vendor/candle-core
    mv "$made" "$work/vendor/candle-core.sha256" vendor/
fi
