#!/usr/bin/env python3
"""Writes gradients.json: integrated gradients of the fixtures by captum on transformers' models, for
models::encoder::gradients and quality::explain.

    target/golden-venv/bin/pip install captum==0.9.0
    target/golden-venv/bin/python tests/golden/make_gradients.py

captum's LayerIntegratedGradients over the table of words, positions and segments staying what they are, 50
Gauss-Legendre points, all in f64. The baseline has the padding token's embedding in every token's place but the
special ones'. Cases of one model:
    {"model": fixture, "ids": [...], "type_ids": [...], "baseline": [ids],
     "target": {"probability": label} | {"logit": label} | {"cosine": the other text's ids},
     "value", "base": at the text and at the baseline, "shares": one a token}
"""

import json
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from captum.attr import LayerIntegratedGradients

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
TEXTS = ["A small boat crosses the bay every hour.", "I absolutely loved it!!!"]
PAIR = ("reset password", "Open the settings, then choose a new one.")
STEPS = 50


def load(name, kind):
    model = kind.from_pretrained(FIXTURES / name, dtype=torch.float64, attn_implementation="eager").eval()
    return model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(FIXTURES / name / "tokenizer.json"))


def case(name, model, tokenizer, text, pair, target, forward):
    encoded = tokenizer([text], [pair]) if pair else tokenizer([text])
    ids, types = encoded["input_ids"][0], encoded["token_type_ids"][0] if "token_type_ids" in encoded else None
    segments = getattr(model.config, "type_vocab_size", 1) or 1
    types = types if types and segments > 1 else [0] * len(ids)
    pad = next(token for token in ("[PAD]", "<pad>") if token in tokenizer.get_vocab())
    special = set(tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_vocab() if token in (
        "[CLS]", "[SEP]", "<s>", "</s>"))
    baseline = [token if token in special else tokenizer.convert_tokens_to_ids(pad) for token in ids]
    options = {"token_type_ids": torch.tensor([types])} if segments > 1 else {}

    def play(tokens):
        # The types of one row, for as many rows as captum asks about at a time.
        rows = {key: value.expand(tokens.shape[0], -1) for key, value in options.items()}
        return forward(model(tokens, attention_mask=torch.ones_like(tokens), **rows))

    words = model.get_input_embeddings()
    explained = LayerIntegratedGradients(play, words)
    shares = explained.attribute(
        torch.tensor([ids]), baselines=torch.tensor([baseline]), n_steps=STEPS, method="gausslegendre"
    )
    with torch.no_grad():
        value = play(torch.tensor([ids])).item()
        # Ids alone would move RoBERTa's positions, which count what is no padding.
        hook = words.register_forward_hook(lambda module, inputs, output: module.weight[torch.tensor([baseline])])
        base = play(torch.tensor([ids])).item()
        hook.remove()
    return {
        "model": name, "ids": ids, "type_ids": types, "baseline": baseline, "target": target,
        "value": value, "base": base, "shares": shares.sum(-1)[0].tolist(),
    }


def classes():
    kind = transformers.AutoModelForSequenceClassification
    for name in ("tiny-bert-classify", "tiny-roberta-classify", "tiny-distilbert-classify", "tiny-bert-multilabel"):
        model, tokenizer = load(name, kind)
        several = model.config.problem_type == "multi_label_classification"
        for text in TEXTS:
            for what in ("probability", "logit"):
                def forward(output, what=what):
                    logits = output.logits
                    if what == "probability":
                        logits = torch.sigmoid(logits) if several else torch.softmax(logits, -1)
                    return logits[:, 1]
                yield case(name, model, tokenizer, text, None, {what: 1}, forward)


def scores():
    for name in ("tiny-bert-rerank", "tiny-xlm-roberta-rerank"):
        model, tokenizer = load(name, transformers.AutoModelForSequenceClassification)
        yield case(name, model, tokenizer, *PAIR, {"probability": 0}, lambda output: torch.sigmoid(output.logits)[:, 0])


def similarities():
    for name, pool in (("tiny-bert-embed", "mean"), ("tiny-distilbert-embed", "mean"), ("tiny-xlm-roberta-embed", "cls")):
        model, tokenizer = load(name, transformers.AutoModel)
        vector = lambda output: output.last_hidden_state.mean(1) if pool == "mean" else output.last_hidden_state[:, 0]
        other = tokenizer(["the big ferry"])["input_ids"][0]
        with torch.no_grad():
            against = vector(model(torch.tensor([other]), attention_mask=torch.ones(1, len(other), dtype=torch.long)))
        forward = lambda output: torch.cosine_similarity(vector(output), against)
        yield case(name, model, tokenizer, TEXTS[0], None, {"cosine": other}, forward)


def main():
    cases = [*classes(), *scores(), *similarities()]
    worst = max(abs(sum(case["shares"]) + case["base"] - case["value"]) for case in cases)
    print(f"{len(cases)} cases, incomplete by at most {worst:.1e}")
    made_with = {name: version(name) for name in ("captum", "transformers", "torch")}
    head = {"made_with": {"python": sys.version.split()[0], **made_with}, "made_on": date.today().isoformat(), "steps": STEPS}
    rounded = [{**one, "shares": [float(f"{share:.9g}") for share in one["shares"]]} for one in cases]
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in rounded)
    (HERE / "gradients.json").write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
