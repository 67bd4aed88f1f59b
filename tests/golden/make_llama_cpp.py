#!/usr/bin/env python3
"""Computes with llama.cpp what the two real decoders answer: tokens, greedy text, teacher-forced logits.

Run in an environment with requirements.txt and requirements-llama-cpp.txt, the models fetched:
    python tests/golden/make_llama_cpp.py [NAME ...]

Writes tests/golden/llama_cpp/<model>.json:
    {"model", "made_with", "made_on",
     "vocabulary": size, "adds_bos": bool, "adds_eos": bool, "end_ids": [ids that end generation],
     "tokenization": [{"text",
                       "ids": with the model's own special tokens added, special text read as text,
                       "ids_special": the same, special text read as tokens     (where it differs)
                       "back": the text of "ids", special tokens left out,
                       "back_special": the text of ids_special (or ids), special tokens written out}],
     "pieces": [[id, bytes in hex, the same with special tokens written out]],
     "prompts": [{"text", "messages": what the template made "text" of (chat models), "ids": the prompt,
                  "greedy": up to 64 ids, temperature 0, no penalties; an end token isn't part of it,
                  "finish": "stop" | "length", "output": the text of "greedy", special tokens left out,
                  "margins": the best logit less the second at each step, the end token's included}],
     "forced": {"text": file, "tokens": [2049 ids], "perplexity": over 2048 positions,
                "top1", "top2": [ids], "margin": [logits], "logprob": [of the next token in the text],
                "alone": {"top1_agreement", "perplexity"}},
     "chat_template": {"template", "cases": [{"messages", "add_generation_prompt", "text"}]}   (chat models)}
The prompt of "prompts" is evaluated as one batch, then a token at a time. "forced" is evaluated in
batches of 512 in one context; "alone" compares it with the same text given to llama.cpp one token at a
time, its own rounding: what another implementation can't be asked to beat.
Two threads, f16 cache, flash attention as llama.cpp chooses. Prompts are tokenized with the model's
special tokens added, and in chats special text read as tokens.
"""

import ctypes
import datetime
import importlib.metadata
import json
import os
import random
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "llama_cpp"
MODELS = ["gemma3-270m", "smollm2-135m"]
THREADS = 2
NEW_TOKENS = 64
FORCED = 2048
BATCH = 512

STRINGS = [
    "",
    " ",
    "  ",
    "          ",
    "a",
    " a",
    "a ",
    "Hello, world!",
    "hello world",
    " Hello  world   again ",
    "\n",
    "\n\n\n",
    "line one\nline two\r\nline three\n",
    "\tindented\t\ttwice",
    "def add(a, b):\n    return a + b  # sum\n",
    "for (int i = 0; i < 10; ++i) { x[i] += y[i] * 0.5f; }",
    'let v: Vec<&str> = s.split("::").collect();',
    "SELECT * FROM ships WHERE name LIKE '%ferry%' LIMIT 10;",
    '{"a": [1, 2.5, -3e10], "b": null, "c": "\\u00e9"}',
    "1234567890",
    "3.14159 and 2,718 and 1/3 and 50% and $19.99",
    "Don't, can't, won't, I'm, they'll, it's, we've, he'd",
    "DON'T SHOUT, IT'S RUDE",
    "naïve café, façade, coöperate, jalapeño",
    "cafe\u0301 decomposed",
    "Straße, Übermut, Ærø, łódź, žluťoučký kůň",
    "Мы приехали в город поздно вечером.",
    "你好，世界。今天天气很好。",
    "東京から京都まで電車で二時間です。",
    "안녕하세요 만나서 반갑습니다",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "🚢🌊 👍🏽 👨‍👩‍👧‍👦 🇩🇰",
    "smile 😀😃😄 and go",
    "x² + y² = z²; ∑ᵢ αᵢ ≤ ∞; A → B",
    "a\u00a0b\u2003c\u200bd\ufeffe",
    "“curly” ‘quotes’ — dashes – and… dots",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.com/a/b?c=d&e=f#top me@example.org",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE",
    "<|im_start|>user\nHi<|im_end|>\n",
    "before<|endoftext|>after",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<eos>",
    "<s>not special here</s> <unk> <pad>",
    "▁already▁marked ▁",
    "Ġ byte marks Ċ",
    "\x00\x01\x7f control",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀",
    "tabs\tand  runs   of    spaces     and\n\n  blank lines\n   ",
]

RAW_PROMPTS = [
    "The ferry leaves the harbour at nine in the morning and",
    "Once upon a time, in a small village by the sea,",
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n",
    "import numpy as np\n\ndef softmax(x):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "Ingredients:\n- 2 eggs\n- 1 cup of flour\n- ",
    "Q: What is the largest planet in the solar system?\nA:",
    "1, 2, 3, 5, 8, 13,",
    "The three main causes of the First World War were",
    "In machine learning, a neural network is",
    "# Installation\n\nTo install the package, run\n\n```",
    "Roses are red,\nViolets are blue,\n",
    "La capital de España es",
    "Il était une fois",
    "<html>\n<head>\n<title>",
    "She opened the door and saw",
    "The recipe for a good life, my grandmother used to say,",
    "a",
]
CHATS = [
    [("user", "What is the capital of Denmark?")],
    [("user", "Write a short poem about the sea.")],
    [("system", "You are a pirate. Answer in one sentence."), ("user", "Where is the treasure?")],
    [("user", "Hello!"), ("assistant", "Hello! How can I help?"), ("user", "Name three fruits.")],
    [("user", "Explain in two sentences why the sky is blue.")],
    [("user", "Write a Python function that reverses a string.")],
    [("system", "Translate to German."), ("user", "Good morning, how are you?")],
    [("user", "What is 17 + 25?")],
    [("user", "Summarize: The ferry was late because of ice, and the passengers sang to pass the time.")],
    [("user", "Give me a list of 5 Nordic cities 🚢")],
]
TEMPLATE_CASES = [
    ([("user", "Hi")], True),
    ([("user", "Hi")], False),
    ([("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")], True),
    ([("user", "  spaces kept  \n"), ("assistant", "")], False),
    ([("user", 'quotes " and \' and {{ braces }} and {% tags %}'), ("assistant", "é 🚢 <b>&amp;</b>")], True),
    ([("assistant", "I begin."), ("tool", '{"a": 1}'), ("user", "Go on <|im_end|>")], True),
]


def main():
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        golden = make(name)
        path = OUT / f"{name}.json"
        path.write_text(one_item_a_line(golden), encoding="utf-8")
        print(f"{name}: {path.stat().st_size} bytes", flush=True)
        assert path.stat().st_size < 1_000_000


def make(name):
    model = Model(ROOT / "models" / name / "1" / "model.gguf")
    template = model.template()
    golden = {
        "model": name,
        "made_with": {
            "llama-cpp-python": version(), "llama.cpp": lib.llama_version().decode(),
            "system": lib.llama_print_system_info().decode().strip(), "threads": THREADS, "cache": "f16",
        },
        "made_on": datetime.date.today().isoformat(),
        "vocabulary": model.size,
        "adds_bos": bool(lib.llama_vocab_get_add_bos(model.vocab)),
        "adds_eos": bool(lib.llama_vocab_get_add_eos(model.vocab)),
        "end_ids": [i for i in range(model.size) if model.ends(i)],
        "tokenization": [tokenization(model, text) for text in STRINGS],
        "pieces": pieces(model),
    }
    chats = CHATS if template else []
    prompts = [prompt(model, text) for text in RAW_PROMPTS[: 20 - len(chats)]]
    for chat in chats:
        prompts.append({"messages": messages(chat), **prompt(model, render(template, chat), parse_special=True)})
    golden["prompts"] = prompts
    golden["forced"] = forced(model)
    if template:
        cases = [
            {"messages": messages(chat), "add_generation_prompt": ask, "text": render(template, chat, ask)}
            for chat, ask in TEMPLATE_CASES
        ]
        golden["chat_template"] = {"template": template, "cases": cases}
    return golden


def version():
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:  # run from its unpacked sources
        import llama_cpp

        return llama_cpp.__version__


class Model:
    """A GGUF file, and one context over it, through llama.cpp's C functions."""

    def __init__(self, path, context=FORCED + 1):
        assert path.exists(), f"{path} is missing: python3 models/fetch.py decoders"
        self.model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        assert self.model, path
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = THREADS
        assert (parameters.type_k, parameters.type_v) == (lib.GGML_TYPE_F16, lib.GGML_TYPE_F16)
        self.context = lib.llama_init_from_model(self.model, parameters)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def template(self):
        found = lib.llama_model_chat_template(self.model, None)
        return found.decode() if found else None

    def ends(self, token):
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def tokenize(self, text, parse_special=False):
        given = text.encode()
        room = len(given) + 8
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self.vocab, given, len(given), tokens, room, True, parse_special)
        assert count >= 0
        return list(tokens[:count])

    def detokenize(self, tokens, special):
        room = 64 * len(tokens) + 64
        text = ctypes.create_string_buffer(room)
        given = (lib.llama_token * len(tokens))(*tokens)
        count = lib.llama_detokenize(self.vocab, given, len(tokens), text, room, False, special)
        assert count >= 0
        return text.raw[:count].decode(errors="replace")

    def piece(self, token, special):
        text = ctypes.create_string_buffer(256)
        count = lib.llama_token_to_piece(self.vocab, token, text, 256, 0, special)
        assert count >= 0
        return text.raw[:count]

    def forget(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def evaluate(self, tokens, first, all_logits=False):
        """Logits of the last token, or of each: [rows, vocabulary], valid until the next call."""
        assert len(tokens) <= BATCH
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, first + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i + 1 == len(tokens)
        assert lib.llama_decode(self.context, batch) == 0
        rows = len(tokens) if all_logits else 1
        return numpy.ctypeslib.as_array(lib.llama_get_logits(self.context), (rows, self.size))


def tokenization(model, text):
    ids, special = model.tokenize(text), model.tokenize(text, parse_special=True)
    case = {"text": text, "ids": ids}
    if special != ids:
        case["ids_special"] = special
    case["back"] = model.detokenize(ids, special=False)
    case["back_special"] = model.detokenize(special, special=True)
    return case


def pieces(model):
    """The first ids, the last, and some between: special ones, single bytes, words."""
    some = random.Random(5).sample(range(300, model.size - 20), 60)
    ids = [*range(24), *range(230, 270), *sorted(some), *range(model.size - 12, model.size)]
    return [[i, model.piece(i, special=False).hex(), model.piece(i, special=True).hex()] for i in ids]


def prompt(model, text, parse_special=False):
    ids = model.tokenize(text, parse_special)
    model.forget()
    logits = model.evaluate(ids, 0)[0]
    greedy, margins, finish = [], [], "length"
    while len(greedy) < NEW_TOKENS:
        best, _, margin = two_best(logits)
        margins.append(margin)
        if model.ends(best):
            finish = "stop"
            break
        greedy.append(best)
        if len(greedy) < NEW_TOKENS:
            logits = model.evaluate([best], len(ids) + len(greedy) - 1)[0]
    output = model.detokenize(greedy, special=False)
    return {"text": text, "ids": ids, "greedy": greedy, "finish": finish, "output": output, "margins": margins}


def two_best(logits):
    second, best = numpy.argpartition(logits, -2)[-2:]
    if logits[second] > logits[best]:
        best, second = second, best
    return int(best), int(second), round(float(logits[best] - logits[second]), 5)


def forced(model):
    tokens = model.tokenize((OUT / "text.txt").read_text(encoding="utf-8"))[: FORCED + 1]
    assert len(tokens) == FORCED + 1, f"the text has {len(tokens)} tokens only"
    together, alone = walk(model, tokens, BATCH), walk(model, tokens, 1)
    agreement = numpy.mean([a == b for a, b in zip(together["top1"], alone["top1"], strict=True)])
    return {
        "text": "text.txt", "tokens": tokens, "perplexity": perplexity(together), **together,
        "alone": {"top1_agreement": round(float(agreement), 6), "perplexity": perplexity(alone)},
    }


def walk(model, tokens, step):
    """At every position: the two best, their distance, and what the token that does follow was given."""
    found = {"top1": [], "top2": [], "margin": [], "logprob": []}
    model.forget()
    for first in range(0, FORCED, step):
        rows = model.evaluate(tokens[first : first + step], first, all_logits=True)
        for row, following in zip(rows, tokens[first + 1 :], strict=False):
            best, second, margin = two_best(row)
            wide = row.astype(numpy.float64)
            log_sum = wide[best] + numpy.log(numpy.exp(wide - wide[best]).sum())
            for key, value in zip(found, (best, second, margin, round(float(wide[following] - log_sum), 5)), strict=True):
                found[key].append(value)
    assert len(found["top1"]) == FORCED
    return found


def perplexity(walked):
    return round(float(numpy.exp(-numpy.mean(walked["logprob"]))), 5)


def messages(chat):
    return [{"role": role, "content": content} for role, content in chat]


def render(template, chat, add_generation_prompt=True):
    """As transformers' apply_chat_template; the special tokens these templates may name are theirs."""
    (text,), _ = render_jinja_template(
        [messages(chat)], chat_template=template, add_generation_prompt=add_generation_prompt
    )
    return text


def one_item_a_line(golden):
    """Compact, but an item per line, so that a diff shows which one changed."""

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = []
    for key, value in golden.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            parts.append(f'"{key}":[\n' + ",\n".join(compact(item) for item in value) + "\n]")
        else:
            parts.append(f'"{key}":{compact(value)}')
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    main()
