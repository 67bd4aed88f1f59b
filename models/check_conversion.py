"""Compares a converted safetensors model with the ONNX file it came from, on real text of mixed lengths.
Needs onnxruntime, numpy, torch, transformers; not run by fetch.py.

    python3 models/check_conversion.py models/paraphrase-l3/1 model.onnx
"""
import sys

import numpy
import onnxruntime
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

TEXTS = [
    "A bill of lading.",
    "The ferry leaves when it is full, or when the clock says so.",
    "Die Fähre legt um 7:45 Uhr ab; 渡し船 — ¿cuánto cuesta?",
    "word " * 120,
    "",
]


def main(folder, onnx_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]",
                                        model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="np")
    feeds = {name: value.astype(numpy.int64) for name, value in batch.items() if name in wanted}
    outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds)))
    with torch.no_grad():
        hidden = model(**{k: torch.from_numpy(v.astype(numpy.int64)) for k, v in batch.items()}).last_hidden_state
    mask = torch.from_numpy(batch["attention_mask"])[..., None]
    mean = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    for name, value in outputs.items():
        if value.shape == mean.shape:
            print(f"{name} {value.shape}: max abs difference to the pooled mean {numpy.abs(value - mean).max():.2e} "
                  f"(largest value {numpy.abs(value).max():.2f})")
        elif value.shape == tuple(hidden.shape):
            difference = numpy.abs(value - hidden.numpy())[batch["attention_mask"] == 1].max()
            print(f"{name} {value.shape}: max abs difference to the hidden states {difference:.2e} "
                  f"(largest value {numpy.abs(value).max():.2f})")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
