"""Merges an encoder's weights with what train_on_minilm.py trained on top of it into one safetensors file
that loads as BertForSequenceClassification. Standard library only.

Every encoder tensor gets the prefix 'bert.'. In the head file (f16, small enough for git), a pair
'lora.<name>.a' [rank, in] and '.b' [out, rank] adds B A to the weight <name>; any other tensor
replaces the one of its name. The sum is made in a fixed order, so the merged file has one SHA-256 everywhere.

    python3 models/merge_weights.py encoder.safetensors head.safetensors merged.safetensors
"""
import array
import struct
import sys

from onnx_to_safetensors import read_safetensors, write_safetensors


def merge_files(encoder_path, head_path, merged_path):
    # position_ids is a buffer of old exports (0, 1, 2, ...), not a weight.
    merged = {
        "bert." + name: tensor
        for name, tensor in read_safetensors(encoder_path).items()
        if not name.endswith("position_ids")
    }
    head = {name: widen(*tensor) for name, tensor in read_safetensors(head_path).items()}
    for name, tensor in head.items():
        if not name.startswith("lora."):
            merged[name] = tensor
        elif name.endswith(".a"):
            target = name[len("lora."):-len(".a")]
            merged[target] = add_low_rank(merged[target], tensor, head[name[:-1] + "b"])
    write_safetensors(merged, merged_path)


def widen(dtype, shape, raw):
    if dtype != "F16":
        raise ValueError(f"a head's tensors are F16, not {dtype}")
    return "F32", shape, array.array("f", struct.unpack(f"<{len(raw) // 2}e", raw)).tobytes()


def add_low_rank(weight, a, b):
    """W + B A, row by row in float64, rounded to f32 once."""
    (dtype, (rows, columns), raw), (_, (rank, _), a_raw), (_, _, b_raw) = weight, a, b
    source, a_values, b_values = array.array("f"), array.array("f"), array.array("f")
    source.frombytes(raw)
    a_values.frombytes(a_raw)
    b_values.frombytes(b_raw)
    factors = [a_values[r * columns:(r + 1) * columns].tolist() for r in range(rank)]
    out = array.array("f")
    for i in range(rows):
        row = source[i * columns:(i + 1) * columns].tolist()
        for r, factor in enumerate(factors):
            scale = b_values[i * rank + r]
            row = [w + scale * f for w, f in zip(row, factor)]
        out.extend(row)
    return dtype, [rows, columns], out.tobytes()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: merge_weights.py encoder.safetensors head.safetensors merged.safetensors")
    merge_files(*sys.argv[1:])
