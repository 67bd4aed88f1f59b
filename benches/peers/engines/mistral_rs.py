"""mistral.rs in process, through its wheel: its own batching of a prompt's continuations."""

import time
from pathlib import Path

import mistralrs
from worker import serve

STATE = {}


def load(model, threads):
    path = Path(model)
    which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
    STATE["runner"] = mistralrs.Runner(which=which, max_seqs=64, prefix_cache_n=0)
    return True


def unload():
    STATE.pop("runner")
    return True


def complete(prompt, tokens, continuations=1):
    request = mistralrs.CompletionRequest(
        model="default", prompt=prompt, max_tokens=tokens, temperature=0.0, n_choices=continuations,
    )
    return STATE["runner"].send_completion_request(request).usage


def prefill(prompts):
    complete(prompts[0], 1)
    begin = time.perf_counter()
    read = sum(complete(prompt, 1).prompt_tokens for prompt in prompts)
    return read / (time.perf_counter() - begin)


def decode(prompts, tokens):
    """As many continuations of one prompt as there are prompts: a runner takes one call at a time.

    The time of the first token, which reads the prompt, is taken off.
    """
    count = len(prompts)
    begin = time.perf_counter()
    complete(prompts[0], 1, count)
    reading = time.perf_counter() - begin
    begin = time.perf_counter()
    written = complete(prompts[0], tokens, count).completion_tokens
    spent = time.perf_counter() - begin - reading
    # Some bindings count one continuation, some all of them; all have as many tokens here.
    written = max(written, tokens * count) - count
    return {"tokens_per_s": written / spent, "step_ms": 1000 * spent / max(1, tokens - 1)}


serve({
    "load": load, "unload": unload, "prefill": prefill, "decode": decode,
    "version": lambda: f"mistralrs {getattr(mistralrs, '__version__', '')}".strip(),
})
