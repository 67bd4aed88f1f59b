"""sentence-transformers on torch: f32 and bf16; and the export that the ONNX engines run."""

import warnings

import torch
from embedding import Engine
from worker import serve


def load(variant, model, threads):
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if variant == "bf16" else torch.float32
    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": kind})
    encoder.eval()

    def run(ids, mask, types):
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        with torch.inference_mode():
            found = encoder({name: torch.from_numpy(array) for name, array in arrays.items()})
            vectors = torch.nn.functional.normalize(found["sentence_embedding"].float(), dim=1)
        return vectors.numpy()

    return run


def export(model, out):
    """Writes the encoder as ONNX in f32, with free batch and length."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids, attention_mask, token_type_ids):
            found = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            )
            return found.last_hidden_state

    ids = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: "batch", 1: "tokens"} for name in [*names, "hidden"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Hidden(), (ids, ids, ids * 0), out, input_names=names, output_names=["hidden"], dynamic_axes=free,
            opset_version=17, dynamo=False,
        )
    return True


def fuse(model, out):
    """Writes the exported model with ONNX Runtime's fused ops for BERT."""
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(model, model_type="bert", num_heads=12, hidden_size=384)
    fused.save_model_to_file(out)
    return True


serve(Engine(load).functions() | {"export": export, "fuse": fuse, "version": lambda: f"torch {torch.__version__}"})
