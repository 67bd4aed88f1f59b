"""llama.cpp in process, through llama-cpp-python, as llama-bench and llama-batched-bench measure it: the
prompt in one go, then steps in which each sequence gets one token. Greedy sampling is left out, as there."""

import time

import llama_cpp
from worker import serve

STATE = {}


def load(model, threads):
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), parameters)
    if not loaded:
        raise RuntimeError(f"{model} can't be loaded")
    STATE.update(model=loaded, threads=threads, vocabulary=llama_cpp.llama_model_get_vocab(loaded))
    return True


def unload():
    llama_cpp.llama_model_free(STATE.pop("model"))
    return True


class Context:
    """A cache for so many sequences."""

    def __init__(self, sequences, tokens_each):
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sequences * tokens_each
        parameters.n_batch = parameters.n_ubatch = max(512, sequences)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = STATE["threads"]
        self.handle = llama_cpp.llama_init_from_model(STATE["model"], parameters)
        if not self.handle:
            raise RuntimeError("no context")
        self.batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.handle)

    def decode(self, rows):
        """Runs (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at] = 1
            self.batch.seq_id[at][0] = sequence
            self.batch.logits[at] = wanted
        if llama_cpp.llama_decode(self.handle, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.handle)


def tokens_of(text):
    room = len(text) + 8
    found = (llama_cpp.llama_token * room)()
    raw = text.encode()
    count = llama_cpp.llama_tokenize(STATE["vocabulary"], raw, len(raw), found, room, True, True)
    if count < 0:
        raise RuntimeError("the text has more tokens than letters")
    return list(found[:count])


def prefill(prompts):
    """Prompt tokens a second."""
    told = [tokens_of(prompt)[:512] for prompt in prompts]
    with Context(1, 512) as context:

        def read(tokens):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.handle), True)
            context.decode([(token, at, 0, at == len(tokens) - 1) for at, token in enumerate(tokens)])

        read(told[0])
        begin = time.perf_counter()
        for tokens in told:
            read(tokens)
        return sum(map(len, told)) / (time.perf_counter() - begin)


def decode(prompts, tokens):
    """Tokens a second of all sequences together, one for each prompt, and ms of a step."""
    sequences = len(prompts)
    with Context(sequences, 512) as context:
        ends = []
        for sequence, prompt in enumerate(prompts):
            told = tokens_of(prompt)[:400]
            context.decode([(token, at, sequence, at == len(told) - 1) for at, token in enumerate(told)])
            ends.append((told[-1], len(told)))
        steps = []
        for step in range(tokens):
            rows = [(token, end + step, sequence, True) for sequence, (token, end) in enumerate(ends)]
            begin = time.perf_counter()
            context.decode(rows)
            steps.append(time.perf_counter() - begin)
    steps = steps[min(2, len(steps) - 1):]
    return {"tokens_per_s": sequences * len(steps) / sum(steps), "step_ms": 1000 * sum(steps) / len(steps)}


serve({
    "load": load, "unload": unload, "prefill": prefill, "decode": decode,
    "version": lambda: f"llama-cpp-python {llama_cpp.__version__}",
})
