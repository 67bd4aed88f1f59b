#!/usr/bin/env bash
# Writes what the binary is made of, with versions, licences and checksums, in CycloneDX's form, to
# target/ferry.cdx.json. What is only for tests or for building is left out.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-cyclonedx >/dev/null; then
    echo "no SBOM: cargo-cyclonedx is not installed (cargo install cargo-cyclonedx)" >&2
    exit 2
fi
cargo cyclonedx --format json --spec-version 1.5 --no-build-deps --override-filename ferry.cdx
mkdir -p target
mv ferry.cdx.json target/ferry.cdx.json
# Of the vendored crate, which has a file of its own.
rm -f vendor/*/ferry.cdx.json
echo "target/ferry.cdx.json: $(grep -c '"purl"' target/ferry.cdx.json) components"
