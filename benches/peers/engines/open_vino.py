"""OpenVINO: f32, bf16, and int8 weights."""

import openvino
from embedding import Engine, pool
from worker import serve

CORE = openvino.Core()


def load(variant, model, threads):
    network = CORE.read_model(model)
    if variant.startswith("int8-weights"):
        import nncf

        network = nncf.compress_weights(network)
    precision = "bf16" if variant.endswith("bf16") else "f32"
    compiled = CORE.compile_model(network, "CPU", {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
    })
    request = compiled.create_infer_request()

    def run(ids, mask, types):
        request.infer({"input_ids": ids, "attention_mask": mask, "token_type_ids": types}, share_inputs=True)
        return pool(request.get_output_tensor(0).data, mask)

    return run


serve(Engine(load).functions() | {"version": lambda: f"openvino {openvino.__version__}"})
