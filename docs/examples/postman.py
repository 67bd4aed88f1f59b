"""Writes a Postman collection (v2.1) with every call of docs/openapi.yaml that has an example.

    pip install pyyaml
    python3 docs/examples/postman.py > ferry.postman_collection.json
"""

import json
from pathlib import Path

import yaml

spec = yaml.safe_load((Path(__file__).resolve().parent.parent / "openapi.yaml").read_text())
folders = {tag["name"]: {"name": tag["description"], "item": []} for tag in spec["tags"]}
for path, item in spec["paths"].items():
    for method in ("get", "post", "delete"):
        operation = item.get(method)
        if operation is None:
            continue
        shown = path
        for parameter in [*item.get("parameters", []), *operation.get("parameters", [])]:
            if parameter.get("in") == "path":
                shown = shown.replace("{%s}" % parameter["name"], parameter.get("example", ":" + parameter["name"]))
        request = {"method": method.upper(), "url": "{{ferry}}" + shown}
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content:
            request["header"] = [{"key": "content-type", "value": "application/json"}]
            request["body"] = {"mode": "raw", "raw": json.dumps(content.get("example", {}), indent=2)}
        folders[operation["tags"][0]]["item"].append({"name": operation["summary"], "request": request})
collection = {
    "info": {
        "name": spec["info"]["title"],
        "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
    },
    "variable": [{"key": "ferry", "value": spec["servers"][0]["url"]}, {"key": "api_key", "value": ""}],
    "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{api_key}}", "type": "string"}]},
    "item": list(folders.values()),
}
print(json.dumps(collection, indent=2))
