#!/usr/bin/env python3
"""Makes tiny decoder checkpoints with random weights, and computes with transformers what they answer.

Run in an environment with requirements.txt from this folder:
    python tests/golden/make_decoders.py [NAME ...]

Writes tests/fixtures/decoders/<name>/ (config.json as published checkpoints spell it, some by
transformers' names up to 4, some by those of 5; weights in f32, f16 or bf16; one in two shards) and
tests/golden/decoders/<name>.json:
    {"model": name, "made_with": {package: version}, "made_on": date,
     "cases": [{"ids": token ids,
                "logits": [tokens][vocabulary]      at every position, six significant digits;
                "last_logits": [vocabulary]         for conversations, which are long, the last row only
                "greedy": the 16 ids that follow, the best at each step, end tokens not minded
                "rope_factors": "short" | "long"    (longrope) what "logits" were computed with: like
                                transformers, long where the row is longer than the original context
                "logits_long", "greedy_long":       (longrope, the short row) the same by the long ones,
                                as engines compute that choose once, by the context they serve
                "text", "messages": what "ids" are the tokens of         (where there is a tokenizer)
                "greedy_text": the text of "greedy", special tokens left out}]}
Computed in f32 (half-precision weights after widening), eager attention, one row at a time, without a
cache. At every greedy step the best leads by MARGIN. Each fixture's switches are shown to matter:
with one changed, the logits move by more than MOVED.

The weights are seeded: the same versions give the same files. The tokenizer's trainer breaks ties by
hash order, so the tokenizer that is there is kept unless --retrain is given.
"""

import copy
import datetime
import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures" / "decoders"
GOLDEN = HERE / "decoders"
sys.path.insert(0, str(HERE.parent / "fixtures"))
from make_fixtures import corpus  # noqa: E402

GREEDY_TOKENS = 16
MARGIN = 5e-4
MOVED = 0.05
SPREAD = 0.2
VOCABULARY = 128
SHORT, LONG = 6, 27

SHAPE = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, hidden_act="silu")
# Heads wider than hidden / heads, so that nothing may take the one for the other.
WIDE = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=24, intermediate_size=32)
GEMMA = dict(
    **WIDE, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
    bos_token_id=2, eos_token_id=1, pad_token_id=0, max_position_embeddings=128,
)
PLAIN = dict(bos_token_id=1, eos_token_id=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False)
LLAMA3_ROPE = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
LONG_ROPE = dict(
    type="longrope",
    short_factor=[1.0, 1.02, 1.05, 1.1, 1.2, 1.4],
    long_factor=[1.1, 1.5, 2.3, 3.7, 6.0, 9.0],
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nAnswer shortly.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# name: (config.json, dtype of the stored weights, {a switch: the config with it changed})
MODELS = {
    "llama": (
        dict(
            architectures=["LlamaForCausalLM"], model_type="llama", **SHAPE, num_hidden_layers=2, head_dim=8,
            vocab_size=320, **{**PLAIN, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
            rope_parameters=dict(rope_type="default", rope_theta=10000.0), attention_bias=False, mlp_bias=False,
        ),
        torch.float32,
        {"rope": dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0))},
    ),
    "llama-scaled": (
        dict(
            architectures=["LlamaForCausalLM"], model_type="llama", **SHAPE, num_hidden_layers=2,
            vocab_size=VOCABULARY, **PLAIN, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, attention_bias=True,
            torch_dtype="float32",
        ),
        torch.float32,
        {
            "llama3 scaling": dict(rope_scaling=None),
            "its ramp": dict(rope_scaling={**LLAMA3_ROPE, "high_freq_factor": 1.5}),
            "attention bias": "self_attn.o_proj.bias",
        },
    ),
    "mistral": (
        dict(
            architectures=["MistralForCausalLM"], model_type="mistral", **SHAPE, num_hidden_layers=2,
            vocab_size=VOCABULARY, **PLAIN, rope_theta=1000000.0, sliding_window=8, torch_dtype="float16",
        ),
        torch.float16,
        {"window": dict(sliding_window=None), "its edge": dict(sliding_window=9)},
    ),
    "qwen2": (
        dict(
            architectures=["Qwen2ForCausalLM"], model_type="qwen2", **SHAPE, num_hidden_layers=2,
            vocab_size=VOCABULARY, **PLAIN, rope_theta=1000000.0, sliding_window=8, max_window_layers=2,
            use_sliding_window=False, torch_dtype="bfloat16",
        ),
        torch.bfloat16,
        {"query bias": "self_attn.q_proj.bias", "value bias": "self_attn.v_proj.bias"},
    ),
    "qwen3": (
        dict(
            architectures=["Qwen3ForCausalLM"], model_type="qwen3", **WIDE, hidden_act="silu", num_hidden_layers=3,
            vocab_size=VOCABULARY, **{**PLAIN, "tie_word_embeddings": True}, attention_bias=False,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0), sliding_window=None,
            use_sliding_window=False, layer_types=["full_attention"] * 3, max_window_layers=3,
        ),
        torch.float32,
        {"query norm": "self_attn.q_norm.weight", "key norm": "self_attn.k_norm.weight"},
    ),
    "gemma2": (
        dict(
            architectures=["Gemma2ForCausalLM"], model_type="gemma2", **GEMMA, num_hidden_layers=4,
            hidden_act="gelu_pytorch_tanh", vocab_size=VOCABULARY, rope_theta=10000.0, sliding_window=8,
            query_pre_attn_scalar=12, attn_logit_softcapping=2.0, final_logit_softcapping=6.0, torch_dtype="float32",
        ),
        torch.float32,
        {
            "window": dict(sliding_window=64), "attention cap": dict(attn_logit_softcapping=None),
            "final cap": dict(final_logit_softcapping=None), "query scale": dict(query_pre_attn_scalar=24),
            "post norms": "post_feedforward_layernorm.weight",
        },
    ),
    "gemma3-text": (
        dict(
            architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", **GEMMA, num_hidden_layers=5,
            vocab_size=VOCABULARY, sliding_window=8, query_pre_attn_scalar=24, use_bidirectional_attention=False,
            attn_logit_softcapping=None, final_logit_softcapping=None, dtype="bfloat16",
            layer_types=[f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full")],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                full_attention=dict(rope_type="default", rope_theta=1000000.0),
            ),
        ),
        torch.bfloat16,
        {
            "window": dict(sliding_window=64), "query norm": "self_attn.q_norm.weight",
            "local base": dict(
                rope_parameters=dict(
                    sliding_attention=dict(rope_type="default", rope_theta=1000000.0),
                    full_attention=dict(rope_type="default", rope_theta=1000000.0),
                )
            ),
            "pattern": dict(layer_types=["sliding_attention"] * 4 + ["full_attention"]),
        },
    ),
    "gemma3-text-scaled": (
        dict(
            architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", **GEMMA, num_hidden_layers=4,
            vocab_size=VOCABULARY, sliding_window=8, sliding_window_pattern=3, query_pre_attn_scalar=16,
            rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(factor=8.0, rope_type="linear"),
            torch_dtype="bfloat16",
        ),
        torch.bfloat16,
        {"linear scaling": dict(rope_scaling=None), "pattern": dict(sliding_window_pattern=2)},
    ),
    "phi3": (
        dict(
            architectures=["Phi3ForCausalLM"], model_type="phi3", **{**SHAPE, "num_key_value_heads": 4},
            num_hidden_layers=2, vocab_size=VOCABULARY, **{**PLAIN, "pad_token_id": 0}, rope_theta=10000.0,
            rope_scaling=None, sliding_window=10, original_max_position_embeddings=128, torch_dtype="float32",
        ),
        torch.float32,
        {"window": dict(sliding_window=None)},
    ),
    "phi3-longrope": (
        dict(
            architectures=["Phi3ForCausalLM"], model_type="phi3",
            **{**SHAPE, "num_attention_heads": 2, "num_key_value_heads": 1}, num_hidden_layers=2,
            vocab_size=VOCABULARY, **{**PLAIN, "pad_token_id": 0, "tie_word_embeddings": True}, rope_theta=10000.0,
            partial_rotary_factor=0.75, rope_scaling=LONG_ROPE, original_max_position_embeddings=16,
            sliding_window=262144, torch_dtype="float32",
        ),
        torch.float32,
        {
            "factors": dict(rope_scaling={**LONG_ROPE, "long_factor": LONG_ROPE["short_factor"]}),
            "attention factor": dict(max_position_embeddings=16),
        },
    ),
}
SHARDED = {"llama-scaled"}
WITH_TOKENIZER = {"llama"}
TEXTS = ["The ferry leaves the harbour at nine", "for i in range(10): print(i * i)  # naïve 🚢"]
CONVERSATIONS = [
    [{"role": "user", "content": "Where is the gate?"}],
    [
        {"role": "system", "content": "You are the captain. "},
        {"role": "user", "content": "When do we leave?"},
        {"role": "assistant", "content": "At nine."},
        {"role": "user", "content": " Why?"},
    ],
]


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    asked = [name for name in sys.argv[1:] if not name.startswith("--")]
    for index, name in enumerate(MODELS):
        if not asked or name in asked:
            make(name, index)
    for folder, limit in ((FIXTURES, 1_000_000), (GOLDEN, 1_000_000)):
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(folder.name, "total", total)
        assert total < limit


def make(name, index):
    """The checkpoint and its golden file, by the first seed that leads to no tie."""
    for seed in range(2000 + index, 4000, 100):
        try:
            make_checkpoint(name, seed)
            return make_golden(name)
        except Tie as tie:
            print(f"  seed {seed}: {tie}")
    raise SystemExit(f"{name}: every seed leads to a tie")


class Tie(Exception):
    """Two tokens are too close for greedy decoding to be the same everywhere."""


def make_checkpoint(name, seed):
    config, dtype, _ = MODELS[name]
    config = {**config, "initializer_range": SPREAD}
    folder = FIXTURES / name
    kept = (folder / "tokenizer.json").read_text() if (folder / "tokenizer.json").exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(load_config(folder), attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Fresh biases are 0 and norms 1 (or 0, Gemma's), which would hide one that is left out.
            if parameter.ndim == 1:
                parameter.add_((0.4 if "norm" in key else 0.5) * torch.randn_like(parameter))
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_weights(folder, tensors, sharded=name in SHARDED)
    ends = dict(bos_token_id=config["bos_token_id"], eos_token_id=config["eos_token_id"])
    if name in WITH_TOKENIZER:
        save_tokenizer(folder, kept)
        ends["eos_token_id"] = [2, 0]
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {sum(p.numel() for p in tensors.values())} parameters, {size} bytes")
    assert size < 160_000


def load_config(folder, **changes):
    """The config as transformers reads the file, some keys changed first."""
    given = {**json.loads((folder / "config.json").read_text()), **copy.deepcopy(changes)}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(given))
        return transformers.AutoConfig.from_pretrained(scratch)


def save_weights(folder, tensors, sharded):
    if not sharded:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({key: tensors[key] for key in members}, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: shard for shard, members in shards.items() for key in members},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_tokenizer(folder, kept):
    """Byte-level BPE as SmolLM2's, on the sentences of the other fixtures; ids 0 to 2 are special."""
    if kept is None or "--retrain" in sys.argv:
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
        tok.train_from_iterator(
            corpus(),
            trainers.BpeTrainer(
                vocab_size=320, special_tokens=special, show_progress=False,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            ),
        )
        tok.decoder = decoders.ByteLevel()
        kept = json.dumps(json.loads(tok.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n"
    (folder / "tokenizer.json").write_text(kept, encoding="utf-8")
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=128, clean_up_tokenization_spaces=False,
        bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_model(folder, **changes):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=load_config(folder, **changes), dtype=torch.float32, attn_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def make_golden(name):
    folder = FIXTURES / name
    config, _, switches = MODELS[name]
    model = load_model(folder)
    chance = torch.Generator().manual_seed(7)
    if name in WITH_TOKENIZER:
        cases = tokenized_cases(folder)
    else:
        rows = [torch.randint(3, config["vocab_size"], (length,), generator=chance).tolist() for length in (SHORT, LONG)]
        cases = [{"ids": row} for row in rows]
    for case in cases:
        answer(case, model)
    if name in WITH_TOKENIZER:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for case in cases:
            case["greedy_text"] = tokenizer.decode(case["greedy"], skip_special_tokens=True)
    if "original_max_position_embeddings" in config and config["rope_scaling"]:
        long_only = load_model(folder, rope_scaling={**LONG_ROPE, "short_factor": LONG_ROPE["long_factor"]})
        for case in cases:
            answer_longrope(case, long_only, config["original_max_position_embeddings"])
    moved = {switch: sensitivity(folder, model, cases[-1]["ids"], change) for switch, change in switches.items()}
    print(f"  f64 differs by {doubled(model, cases):.1e}")
    print("  moved by", {switch: round(by, 3) for switch, by in moved.items()})
    assert all(by > MOVED for by in moved.values())
    golden = {"model": name, "made_with": versions(), "made_on": datetime.date.today().isoformat(), "cases": cases}
    GOLDEN.mkdir(exist_ok=True)
    path = GOLDEN / f"{name}.json"
    path.write_text(one_case_a_line(golden), encoding="utf-8")
    print(f"  golden {path.stat().st_size} bytes")


def tokenized_cases(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cases = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    for messages in CONVERSATIONS:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        cases.append({"messages": messages, "text": text, "ids": ids})
    return cases


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def answer(case, model):
    """Adds the logits and the greedy continuation of case["ids"]."""
    logits = logits_of(model, case["ids"])
    if "messages" in case:
        case["last_logits"] = rounded(logits[-1])
    else:
        case["logits"] = [rounded(row) for row in logits]
    case["greedy"] = greedy(model, case["ids"])


def greedy(model, ids):
    ids, new = list(ids), []
    for _ in range(GREEDY_TOKENS):
        last = logits_of(model, ids)[-1]
        best, second = last.topk(2).values
        if best - second < MARGIN:
            raise Tie(f"a tie at step {len(new)}")
        new.append(int(last.argmax()))
        ids.append(new[-1])
    return new


def answer_longrope(case, long_only, original):
    """A continuation that crosses the original context would change its mind on the way: long only."""
    length = len(case["ids"])
    case["rope_factors"] = "long" if length > original else "short"
    if length <= original:
        case["logits_long"] = [rounded(row) for row in logits_of(long_only, case["ids"])]
        case["greedy_long"] = greedy(long_only, case["ids"])
        del case["greedy"]


def sensitivity(folder, model, ids, change):
    """How far the logits move, at most, when a config key or a tensor is changed."""
    if isinstance(change, dict):
        other = load_model(folder, **change)
    else:
        other = load_model(folder)
        neutral = 0.0 if change.endswith("bias") or "gemma" in folder.name else 1.0
        with torch.no_grad():
            for key, parameter in other.named_parameters():
                if change in key:
                    parameter.fill_(neutral)
    return float((logits_of(other, ids) - logits_of(model, ids)).abs().max())


def doubled(model, cases):
    """How far the logits are, at most, from the same computed in f64 (norms and rotation stay in f32)."""
    wide = copy.deepcopy(model).double()
    return max(float((logits_of(wide, case["ids"]) - logits_of(model, case["ids"])).abs().max()) for case in cases)


def rounded(row):
    return [float(f"{x:.6g}") for x in row.tolist()]


def versions():
    packages = ("transformers", "torch", "tokenizers", "safetensors")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}


def one_case_a_line(golden):
    """Compact, but a case per line, so that a diff shows which case changed."""

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    head = compact({key: value for key, value in golden.items() if key != "cases"})
    return head[:-1] + ',"cases":[\n' + ",\n".join(compact(case) for case in golden["cases"]) + "\n]}\n"


if __name__ == "__main__":
    main()
