#!/usr/bin/env python3
"""Loads what `ferry quantize` writes into llama.cpp, and computes with it what the files say.

Run in an environment with requirements-llama-cpp.txt and transformers of requirements.txt, the models
fetched and Ferry built:
    python tests/golden/make_quantized.py [--ferry target/debug/ferry] [NAME ...]

Writes tests/golden/quantized/<name>.json, for a decoder
    {"name", "input": path, "type", "sha256": of the GGUF file, "bytes", "made_with", "made_on",
     "prompts": [{"text", "ids", "greedy", "finish", "output", "margins"}]}     as make_llama_cpp.py
for a tiny decoder, whose golden logits are transformers', instead of "prompts"
    {"logits": [{"ids", "error": largest difference of llama.cpp's logits from transformers', "greedy"}]}
and for an encoder
    {"rows": [{"text", "ids": llama.cpp's tokens, "output": pooled embedding or logits},
     "same_tokens": [texts that llama.cpp tokenizes as transformers do, texts that were not cut],
     "least_cosine" (embeddings) or "error" (logits): between llama.cpp and the golden f32 outputs}
The file's hash is part of it, so that a Rust test that writes the same file compares with what llama.cpp
read, without llama.cpp.
"""

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy

from make_llama_cpp import CHATS, RAW_PROMPTS, Model, messages, one_item_a_line, prompt, render, version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "quantized"
TINY = ROOT / "tests/fixtures"
MAX_ROWS = 12
NEW_TOKENS = 16

DECODERS = {
    "smollm2-135m-q8_0": ("models/smollm2-135m/1/model.gguf", "q8_0"),
    "gemma3-270m-q5_0": ("models/gemma3-270m/1/model.gguf", "q5_0"),
}
# Not gemma2 and gemma3-text-scaled: their scale of attention is one that llama.cpp has no key for.
TINY_DECODERS = {
    f"decoders-{name}-f32": (f"tests/fixtures/decoders/{name}", "f32")
    for name in ["llama", "llama-scaled", "mistral", "qwen2", "qwen3", "gemma3-text", "phi3"]
}
# llama.cpp has no windows in these families, so it is asked for what fits in one.
WINDOWS = {"mistral": 8, "phi3": 10}
ENCODERS = {
    "minilm-q8_0": ("models/minilm/1", "q8_0"),
    "minilm-q4_k": ("models/minilm/1", "q4_k"),
    "tiny-bert-embed-f32": ("tests/fixtures/tiny-bert-embed", "f32"),
    "tiny-bert-classify-f32": ("tests/fixtures/tiny-bert-classify", "f32"),
    "tiny-bert-tokens-f32": ("tests/fixtures/tiny-bert-tokens", "f32"),
    "tiny-distilbert-embed-f32": ("tests/fixtures/tiny-distilbert-embed", "f32"),
    "tiny-roberta-embed-f32": ("tests/fixtures/tiny-roberta-embed", "f32"),
    "tiny-roberta-classify-f32": ("tests/fixtures/tiny-roberta-classify", "f32"),
    "tiny-xlm-roberta-embed-f32": ("tests/fixtures/tiny-xlm-roberta-embed", "f32"),
    "tiny-xlm-roberta-rerank-f32": ("tests/fixtures/tiny-xlm-roberta-rerank", "f32"),
}
MEAN, RANK, NONE = 1, 4, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ferry", default=str(ROOT / "target/debug/ferry"))
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    OUT.mkdir(exist_ok=True)
    for makers, make in ((DECODERS, decoder), (TINY_DECODERS, tiny_decoder), (ENCODERS, encoder)):
        for name, (source, kind) in makers.items():
            if arguments.names and name not in arguments.names:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                command = [arguments.ferry, "quantize", source, path, "--type", kind]
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                golden = {
                    "name": name, "input": source, "type": kind,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
                    "made_with": {"llama-cpp-python": version(), "llama.cpp": lib.llama_version().decode()},
                    "made_on": datetime.date.today().isoformat(),
                    **make(path, ROOT / source),
                }
            (OUT / f"{name}.json").write_text(one_item_a_line(golden), encoding="utf-8")
            print(name, {key: golden.get(key) for key in ("bytes", "least_cosine", "error")}, flush=True)


def decoder(path, _source):
    model = Model(path)
    template = model.template()
    if template:
        prompts = [prompt(model, render(template, chat), parse_special=True) for chat in CHATS[:5]]
        prompts = [{"messages": messages(chat), **case} for chat, case in zip(CHATS, prompts, strict=False)]
    else:
        prompts = []
    prompts += [prompt(model, text) for text in RAW_PROMPTS[:5]]
    return {"prompts": prompts}


def tiny_decoder(path, source):
    """Token ids in, logits out: most of these checkpoints have no tokenizer."""
    wanted = json.loads((HERE / "decoders" / f"{source.name}.json").read_text(encoding="utf-8"))["cases"]
    model = Model(path, context=256)
    model.size = len((wanted[0].get("logits") or [wanted[0]["last_logits"]])[0])
    cases = []
    for case in wanted:
        if "logits" not in case:
            continue
        window = WINDOWS.get(source.name)
        ids = case["ids"][:window]
        model.forget()
        logits = model.evaluate(ids, 0, all_logits=True).copy()
        error = numpy.abs(logits - numpy.array(case["logits"], numpy.float32)[:window]).max()
        greedy = [int(logits[-1].argmax())]
        while len(greedy) < NEW_TOKENS and not window:
            logits = model.evaluate([greedy[-1]], len(ids) + len(greedy) - 1)
            greedy.append(int(logits[-1].argmax()))
        cases.append({"ids": ids, "error": round(float(error), 6), "greedy": greedy})
    return {"logits": cases, "error": max(case["error"] for case in cases)}


class Encoder:
    """A GGUF file of an encoder, and one context over it, through llama.cpp's C functions."""

    def __init__(self, path):
        self.model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        assert self.model, path
        self.vocab = lib.llama_model_get_vocab(self.model)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = 2
        parameters.embeddings = True
        self.context = lib.llama_init_from_model(self.model, parameters)
        assert self.context, path
        self.pooling = lib.llama_pooling_type(self.context)

    def tokenize(self, text):
        given = text.encode()
        room = 2 * len(given) + 16
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self.vocab, given, len(given), tokens, room, True, True)
        assert count >= 0
        return list(tokens[:count])

    def run(self, ids):
        """A pooled vector, the scores of a head, or a vector a token."""
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = True
        assert lib.llama_encode(self.context, batch) == 0
        lib.llama_batch_free(batch)
        size = lib.llama_model_n_embd(self.model)
        if self.pooling == NONE:
            rows = [lib.llama_get_embeddings_ith(self.context, i) for i in range(len(ids))]
            return numpy.array([numpy.ctypeslib.as_array(row, (size,)) for row in rows])
        if self.pooling == RANK:
            size = lib.llama_model_n_cls_out(self.model)
        return numpy.ctypeslib.as_array(lib.llama_get_embeddings_seq(self.context, 0), (size,)).copy()


def encoder(path, source):
    model = Encoder(path)
    name = source.name if source.parent == TINY else source.parent.name
    wanted = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    limit = lib.llama_model_n_ctx_train(model.model)
    rows, cosines, errors, same_ids = [], [], [], []
    for case in wanted["cases"]:
        # llama.cpp knows no second text: its types are all 0.
        if any(case.get("type_ids", [])) or not 2 < len(case["ids"]) <= min(limit, 256) or len(rows) == MAX_ROWS:
            continue
        found = model.run(case["ids"])
        row = {"text": case["text"], "ids": case["ids"]}
        if "embedding" in case:
            golden = numpy.array(case["embedding"], numpy.float32)
            cosines.append(float(found @ golden / (numpy.linalg.norm(found) * numpy.linalg.norm(golden))))
        elif "logits" in case:
            errors.append(float(numpy.abs(found - numpy.array(case["logits"], numpy.float32)).max()))
        if "text_pair" not in case and len(case["ids"]) < wanted["max_tokens"]:
            same_ids.append(model.tokenize(case["text"]) == case["ids"])
        if found.ndim == 1:
            row["output"] = [round(float(value), 6) for value in found]
        rows.append(row)
    assert rows, name
    golden = {"rows": rows, "same_tokens": [sum(same_ids), len(same_ids)]}
    if cosines:
        golden["least_cosine"] = round(min(cosines), 7)
    if errors:
        golden["error"] = round(max(errors), 6)
    return golden


if __name__ == "__main__":
    main()
