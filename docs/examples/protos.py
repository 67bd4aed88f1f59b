"""Writes a zip of the protos, laid out so that `protoc -I .` and `buf generate` find the imports.

    python3 docs/examples/protos.py ferry-protos.zip
"""

import sys
import zipfile
from pathlib import Path

protos = Path(__file__).resolve().parent.parent.parent / "proto"
with zipfile.ZipFile(sys.argv[1] if len(sys.argv) > 1 else "ferry-protos.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
    for file in sorted(protos.rglob("*.proto")):
        bundle.write(file, file.relative_to(protos))
    bundle.writestr("buf.yaml", "version: v2\nmodules:\n  - path: .\n")
