#!/usr/bin/env python3
"""Computes what a model should answer, with transformers in f32 on the CPU, one text at a time.

Run in an environment with requirements.txt from this folder:
    python tests/golden/make_golden.py [NAME ...]
Without names: every folder in tests/fixtures/, and every model under models/ that has been fetched.
Real embedders are computed a second time by sentence-transformers, and must agree.

One file per model, tests/golden/<model>.json:
    {"model": name,
     "task": "embed" | "classify" | "rerank" | "tokens",
     "made_with": {"transformers": version, "torch": ..., ...},
     "made_on": date,
     "max_tokens": tokens a row may have, special tokens included,
     "pooling": "mean" | "cls" | "last", "normalize": bool        (embed only)
     "activation": "softmax" | "sigmoid", "labels": [name, ...]    (classify, rerank, tokens)
     "cases": [{"text": the text, or a pair's first (the query),
                "text_pair": a pair's second (the document)        (rerank only)
                "ids": token ids after truncation, special tokens included,
                "type_ids": segment ids                            (models with more than one segment)
                "embedding": [dim]                                 (embed)
                "logits": [labels], "probabilities": [labels]      (classify; rerank has 1 label)
                "token_logits": [tokens][labels]}                  (tokens; special tokens included)
              ]}
Floats have 7 significant digits (6 where there are many). Weights stored as f16 or bf16 are computed
in f32 after widening. Pairs are truncated as transformers' "longest_first".
"""

import datetime
import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path

import numpy
import torch
import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURE_TEXTS = 24
FIXTURE_RERANK_SETS = 9
SIZE_LIMIT = 400_000


def versions_of(packages):
    return {name: importlib.metadata.version(name) for name in packages}


MADE_WITH = {
    "python": sys.version.split()[0],
    **versions_of(["transformers", "torch", "tokenizers", "safetensors", "numpy"]),
}


def find_models():
    """Yields (name, folder of the weights, manifest or {}, whether it is a fixture)."""
    for folder in sorted((ROOT / "tests" / "fixtures").iterdir()):
        if (folder / "model.safetensors").exists():
            yield folder.name, folder, {}, True
    for folder in sorted((ROOT / "models").iterdir()):
        manifest_path = folder / "model.toml"
        weights = folder / "1" / "model.safetensors"
        if weights.exists() and (folder / "1" / "tokenizer.json").exists():
            manifest = tomllib.loads(manifest_path.read_text()) if manifest_path.exists() else {}
            if manifest.get("task") == "generate":
                continue
            yield folder.name, folder / "1", manifest, False


def read_json(path):
    return json.loads(path.read_text()) if path.exists() else {}


class Model:
    """A checkpoint with its tokenizer, and what the manifest or the files beside it say of its use."""

    def __init__(self, folder, manifest):
        config = read_json(folder / "config.json")
        architecture = config["architectures"][0]
        self.task = manifest.get("task") or task_of(architecture, config)
        kind = {
            "embed": transformers.AutoModel,
            "classify": transformers.AutoModelForSequenceClassification,
            "rerank": transformers.AutoModelForSequenceClassification,
            "tokens": transformers.AutoModelForTokenClassification,
        }[self.task]
        self.model, loading = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        self.model.eval()
        # Sentence embedders may ship without the pooler, which nothing here reads; anything else must be there.
        invented = {key for key in loading["missing_keys"] if self.task != "embed" or "pooler" not in key}
        assert not invented, f"not in the checkpoint: {invented}"
        self.config = self.model.config
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self.segments = getattr(self.config, "type_vocab_size", 1) or 1
        self.max_tokens = self.tokens_allowed(folder, manifest)
        if self.task == "embed":
            embed = manifest.get("embed", {})
            self.pooling = embed.get("pooling") or pooling_of(read_json(folder / "1_Pooling" / "config.json"))
            self.normalize = embed.get("normalize", True)
        else:
            self.activation = manifest.get("classify", {}).get("activation") or activation_of(self.config)
            self.labels = [self.config.id2label[i] for i in range(self.config.num_labels)]

    def tokens_allowed(self, folder, manifest):
        asked = manifest.get("input", {}).get("max_tokens", 0)
        if not manifest:
            asked = read_json(folder / "sentence_bert_config.json").get("max_seq_length") or 0
        positions = self.config.max_position_embeddings
        if "roberta" in self.config.model_type:
            positions -= self.config.pad_token_id + 1
        return min(asked or positions, positions)

    def encode(self, text, text_pair=None):
        # A batch of one: called with single strings, transformers takes an empty second text for none at all.
        encoded = self.tokenizer(
            [text],
            None if text_pair is None else [text_pair],
            truncation="longest_first",
            max_length=self.max_tokens,
            return_token_type_ids=True,
        )
        return {key: rows[0] for key, rows in encoded.items()}

    @torch.no_grad()
    def run(self, encoded):
        ids = torch.tensor([encoded["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.segments > 1:
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"]])
        out = self.model(**inputs)
        if self.task != "embed":
            return out.logits[0]
        hidden = out.last_hidden_state[0]
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[self.pooling]
        return torch.nn.functional.normalize(vector, dim=0) if self.normalize else vector

    def case(self, text, text_pair, digits):
        encoded = self.encode(text, text_pair)
        out = self.run(encoded)
        case = {"text": text}
        if text_pair is not None:
            case["text_pair"] = text_pair
        case["ids"] = encoded["input_ids"]
        if self.segments > 1:
            case["type_ids"] = encoded["token_type_ids"]
        if self.task == "embed":
            case["embedding"] = rounded(out, digits)
        elif self.task == "tokens":
            case["token_logits"] = [rounded(row, digits) for row in out]
        else:
            probabilities = out.softmax(0) if self.activation == "softmax" else out.sigmoid()
            case["logits"] = rounded(out, digits)
            case["probabilities"] = rounded(probabilities, digits)
        return case


def task_of(architecture, config):
    if architecture.endswith("ForSequenceClassification"):
        return "rerank" if len(config.get("id2label", {0: 0, 1: 1})) == 1 else "classify"
    return "tokens" if architecture.endswith("ForTokenClassification") else "embed"


def pooling_of(config):
    if config.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if config.get("pooling_mode_lasttoken") else "mean"


def activation_of(config):
    several = config.problem_type == "multi_label_classification"
    return "sigmoid" if several or config.num_labels == 1 else "softmax"


def rounded(tensor, digits):
    return [float(f"{x:.{digits}g}") for x in tensor.tolist()]


def make(name, folder, manifest, is_fixture):
    inputs = json.loads((HERE / "texts.json").read_text())
    model = Model(folder, manifest)
    if model.task == "rerank":
        sets = inputs["rerank"][:FIXTURE_RERANK_SETS] if is_fixture else inputs["rerank"]
        pairs = [(one["query"], document) for one in sets for document in one["documents"]]
    else:
        few = is_fixture or model.task == "tokens" or getattr(model.config, "hidden_size", 0) > 384
        pairs = [(text, None) for text in (inputs["texts"][:FIXTURE_TEXTS] if few else inputs["texts"])]
    digits = 6 if model.task in ("embed", "tokens") and not is_fixture else 7
    golden = {
        "model": name,
        "task": model.task,
        "made_with": dict(MADE_WITH),
        "made_on": datetime.date.today().isoformat(),
        "max_tokens": model.max_tokens,
    }
    if model.task == "embed":
        golden.update(pooling=model.pooling, normalize=model.normalize)
    else:
        golden.update(activation=model.activation, labels=model.labels)
    golden["cases"] = [model.case(text, pair, digits) for text, pair in pairs]
    if model.task == "embed" and not is_fixture:
        golden["made_with"].update(agree_with_sentence_transformers(folder, model, golden["cases"]))
    path = HERE / f"{name}.json"
    path.write_text(one_case_a_line(golden), encoding="utf-8")
    size = path.stat().st_size
    print(f"{name}: {model.task}, {len(pairs)} cases, max_tokens {model.max_tokens}, {size} bytes")
    assert size < SIZE_LIMIT, path


def agree_with_sentence_transformers(folder, model, cases):
    """Computes the same with sentence-transformers, from the same files; returns its version."""
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules as parts

    transformer = parts.Transformer(str(folder), max_seq_length=model.max_tokens)
    stages = [transformer, parts.Pooling(transformer.get_embedding_dimension(), model.pooling)]
    if model.normalize:
        stages.append(parts.Normalize())
    encoder = sentence_transformers.SentenceTransformer(modules=stages, device="cpu")
    worst = 0.0
    for case in cases:
        theirs = encoder.encode(case["text"], convert_to_numpy=True)
        worst = max(worst, float(numpy.abs(theirs - numpy.array(case["embedding"])).max()))
    print(f"  sentence-transformers differs by at most {worst:.1e}")
    assert worst < 1e-5
    return versions_of(["sentence-transformers"])


def one_case_a_line(golden):
    """Compact, but a case per line, so that a diff shows which case changed."""

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    head = compact({key: value for key, value in golden.items() if key != "cases"})
    return head[:-1] + ',"cases":[\n' + ",\n".join(compact(case) for case in golden["cases"]) + "\n]}\n"


def main():
    transformers.utils.logging.disable_progress_bar()
    # Else it reports the pooler as missing, which sentence embedders ship without.
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    found = [one for one in find_models() if not asked or one[0] in asked]
    missing = set(asked) - {one[0] for one in found}
    if missing:
        sys.exit(f"not found: {', '.join(sorted(missing))}")
    for one in found:
        make(*one)


if __name__ == "__main__":
    main()
