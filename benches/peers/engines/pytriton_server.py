"""Triton, as nvidia-pytriton starts it, with ONNX Runtime f32 behind its dynamic batcher.

The model takes text, as Ferry does: tokenizing is part of serving. Unlike the other engines it answers
over its own gRPC port.
"""

import numpy as np
import onnxruntime
from embedding import Texts, pool
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from worker import serve

STATE = {}


def start(model, tokenizer, threads, grpc_port, http_port, metrics_port):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    texts = Texts(tokenizer)

    @batch
    def embed(TEXT):
        rows = [row[0].decode() for row in TEXT]
        found = np.zeros((len(rows), 384), np.float32)
        for places, (ids, mask, types) in texts.batches(rows, 32):
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            found[places] = pool(session.run(None, inputs)[0], mask)
        return {"EMBEDDING": found}

    triton = Triton(config=TritonConfig(
        grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, grpc_address="127.0.0.1",
        http_address="127.0.0.1", metrics_address="127.0.0.1", log_verbose=0,
    ))
    triton.bind(
        model_name="minilm", infer_func=embed, inputs=[Tensor(name="TEXT", dtype=bytes, shape=(1,))],
        outputs=[Tensor(name="EMBEDDING", dtype=np.float32, shape=(384,))],
        config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)),
    )
    triton.run()
    STATE["triton"] = triton
    return True


def stop():
    STATE.pop("triton").stop()
    return True


def version():
    from importlib.metadata import version as installed

    return f"Triton by nvidia-pytriton {installed('nvidia-pytriton')}, onnxruntime {onnxruntime.__version__}"


serve({"start": start, "stop": stop, "version": version})
