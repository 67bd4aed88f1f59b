"""ONNX Runtime: f32, f32 with its own BERT fusions, and dynamic int8 per tensor and per channel.

The fusions are made where torch is (sentence_transformers_.py): their tool imports it.
"""

from pathlib import Path

import onnxruntime
from embedding import Engine, pool
from worker import serve


def load(variant, model, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    path = made(variant, Path(model))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids, mask, types):
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return pool(session.run(None, inputs)[0], mask)

    return run


def made(variant, model):
    """The model's file of a variant, made from the f32 one when it is not there."""
    if variant == "f32":
        return model
    path = model.with_name(f"{model.stem}-{variant}.onnx")
    if variant == "f32-fused":
        return path
    if path.exists() and path.stat().st_mtime >= model.stat().st_mtime:
        return path
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(path), per_channel=variant == "int8-channel", weight_type=QuantType.QInt8)
    return path


serve(Engine(load).functions() | {"version": lambda: f"onnxruntime {onnxruntime.__version__}"})
