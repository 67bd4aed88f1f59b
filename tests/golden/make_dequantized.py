#!/usr/bin/env python3
"""Computes what the two real decoders answer exactly: weights dequantized, everything in f32, by transformers.

Run in an environment with requirements.txt and requirements-llama-cpp.txt, after make_llama_cpp.py:
    python tests/golden/make_dequantized.py [NAME ...]

llama.cpp rounds activations to 8 bits and the cache to 16, and so may any other engine; this tells how far
each is from what the weights say. Over the "forced" tokens of llama_cpp/<model>.json, writes
tests/golden/llama_cpp/<model>-dequantized.json:
    {"model", "made_with", "made_on", "perplexity",
     "top1", "top2": [ids], "margin": [logits], "logprob": [of the next token in the text],
     "llama_cpp": {"top1_agreement": with this, "top1_agreement_by_margin": [[least margin here, positions,
                   agreement]], "in_top2": share of llama.cpp's best among the two best here,
                   "logprob_difference": mean of the absolute}}
"""

import datetime
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy
import torch
import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = HERE / "llama_cpp"
MODELS = ["gemma3-270m", "smollm2-135m"]
ROWS = 256  # of logits at a time: the vocabulary is large
MARGINS = [0.1, 0.2, 0.3, 0.5, 0.75, 1.0]


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    for name in sys.argv[1:] or MODELS:
        forced = json.loads((FOLDER / f"{name}.json").read_text())["forced"]
        exact = walk(name, forced["tokens"])
        golden = {
            "model": name, "made_with": versions(), "made_on": datetime.date.today().isoformat(),
            "perplexity": round(float(numpy.exp(-numpy.mean(exact["logprob"]))), 5), **exact,
            "llama_cpp": compare(exact, forced),
        }
        lines = ",\n".join(f'"{key}":{json.dumps(value, separators=(",", ":"))}' for key, value in golden.items())
        (FOLDER / f"{name}-dequantized.json").write_text("{" + lines + "}\n", encoding="utf-8")
        print(name, "perplexity", golden["perplexity"], golden["llama_cpp"], flush=True)


@torch.no_grad()
def walk(name, tokens):
    """At every position: the two best, their distance, and what the token that does follow was given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "models" / name / "1", gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    hidden = model.model(torch.tensor([tokens[:-1]]), use_cache=False).last_hidden_state[0]
    found = {"top1": [], "top2": [], "margin": [], "logprob": []}
    for first in range(0, len(tokens) - 1, ROWS):
        logits = model.lm_head(hidden[first : first + ROWS])
        following = torch.tensor(tokens[first + 1 : first + 1 + len(logits)])
        values, ids = logits.topk(2)
        found["top1"] += ids[:, 0].tolist()
        found["top2"] += ids[:, 1].tolist()
        found["margin"] += rounded(values[:, 0] - values[:, 1])
        found["logprob"] += rounded(logits.log_softmax(-1).gather(1, following[:, None])[:, 0])
    return found


def compare(exact, forced):
    best, theirs = numpy.array(exact["top1"]), numpy.array(forced["top1"])
    margins, same = numpy.array(exact["margin"]), best == theirs
    by_margin = [[least, int((margins > least).sum()), round(float(same[margins > least].mean()), 5)] for least in MARGINS]
    difference = numpy.abs(numpy.array(exact["logprob"]) - numpy.array(forced["logprob"]))
    return {
        "top1_agreement": round(float(same.mean()), 5),
        "top1_agreement_by_margin": by_margin,
        "in_top2": round(float((same | (numpy.array(exact["top2"]) == theirs)).mean()), 5),
        "logprob_difference": round(float(difference.mean()), 5),
    }


def rounded(values):
    return [round(value, 5) for value in values.tolist()]


def versions():
    packages = ("transformers", "torch", "gguf")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}


if __name__ == "__main__":
    main()
