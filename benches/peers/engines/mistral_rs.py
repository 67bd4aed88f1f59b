"""mistral.rs in process, through its wheel: its own continuous batching, asked from threads."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mistralrs
from worker import serve

STATE = {}


def load(model, threads):
    path = Path(model)
    which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
    STATE["runner"] = mistralrs.Runner(which=which, max_seqs=64)
    return True


def unload():
    STATE.pop("runner")
    return True


def complete(prompt, tokens):
    request = mistralrs.CompletionRequest(model="default", prompt=prompt, max_tokens=tokens, temperature=0.0)
    return STATE["runner"].send_completion_request(request).usage


def prefill(prompts):
    complete(prompts[0], 1)
    begin = time.perf_counter()
    read = sum(complete(prompt, 1).prompt_tokens for prompt in prompts)
    return read / (time.perf_counter() - begin)


def decode(prompts, tokens):
    """All at once; the time to read the prompts is taken off, as the others' clocks begin after it."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda prompt: complete(prompt, 1), prompts))
        reading = time.perf_counter() - begin
        begin = time.perf_counter()
        usages = list(pool.map(lambda prompt: complete(prompt, tokens), prompts))
        spent = time.perf_counter() - begin - reading
    written = sum(usage.completion_tokens - 1 for usage in usages)
    return {"tokens_per_s": written / spent, "step_ms": 1000 * spent / max(1, tokens - 1)}


serve({
    "load": load, "unload": unload, "prefill": prefill, "decode": decode,
    "version": lambda: f"mistralrs {getattr(mistralrs, '__version__', '')}".strip(),
})
