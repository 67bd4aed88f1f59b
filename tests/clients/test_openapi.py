"""docs/openapi.yaml holds: it is valid, its examples are answered as it says, and it has every route."""

import json
import os
import re
import urllib.error
import urllib.request

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

SPEC = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
# What is not served in these tests stands for its kind.
STANDS_FOR = {"smollm2-135m": "tiny-llama", "definitions": "tiny-bert-rerank", "prompt-injection": "tiny-bert-classify"}
METHODS = ("get", "post", "delete")


def operations():
    for path, item in SPEC["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["FERRY_HTTP"] + path, data, {"content-type": "application/json"}, method=method.upper())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers["content-type"], refused.read()


def filled(operation, path):
    for parameter in operation.get("parameters", []):
        if parameter.get("in") == "path":
            path = path.replace("{%s}" % parameter["name"], parameter["example"])
    return path


def check(schema, value):
    Draft202012Validator({**schema, "components": SPEC["components"]}).validate(value)


def test_the_description_is_valid():
    validate(SPEC)


WITH_EXAMPLES = [
    (method, path, operation)
    for method, path, operation in operations()
    if "{id}" not in path and "/v1/files" not in path and path != "/v1/batches"
]


@pytest.mark.parametrize("method,path,operation", WITH_EXAMPLES, ids=[f"{m} {p}" for m, p, _ in WITH_EXAMPLES])
def test_an_example_is_answered_as_described(method, path, operation):
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    body = content and json.loads(json.dumps(content["example"]))
    if body:
        check(content["schema"], body)
        for place in (body, body.get("options", {})):
            if "model" in place:
                place["model"] = STANDS_FOR.get(place["model"], place["model"])
    if path.endswith("/chat/completions"):
        # Random weights have no template: what chat says of that is described too.
        status, _, answer = ask(method, filled(operation, path), body)
        assert str(status) in operation["responses"], (status, answer)
        return
    status, kind, answer = ask(method, filled(operation, path), body)
    assert status == 200, (status, answer)
    described = operation["responses"]["200"]["content"]
    kind = kind.split(";")[0]
    assert kind in described, kind
    if kind == "application/json":
        check(described[kind]["schema"], json.loads(answer))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/completions", "/ferry.v1.Inference/Classify"])
def test_a_refusal_is_as_described(path):
    operation = SPEC["paths"][path]["post"]
    status, _, answer = ask("post", path, {"nothing_that_is_known": 1})
    assert status == 400
    name = operation["responses"]["400"]["$ref"].rpartition("/")[2]
    schema = SPEC["components"]["responses"][name]["content"]["application/json"]["schema"]
    check(schema, json.loads(answer))


def test_every_route_is_described():
    known = {re.sub(r"\{\w+\}", "{}", path) for path in SPEC["paths"]}
    routes = set()
    for file in (ROOT / "src" / "api" / "http").rglob("*.rs"):
        routes |= set(re.findall(r'\.route\(\s*"([^"]+)"', file.read_text()))
    # Other names of the same, and the page for people.
    others = {"/", "/dashboard", "/dashboard/", "/dashboard/status", "/dashboard/{file}", "/rerank", "/v2/rerank", "/v2/health/live", "/v2/health/ready"}
    missing = {re.sub(r"\{\w+\}", "{}", route) for route in routes - others} - known
    assert not missing, missing
