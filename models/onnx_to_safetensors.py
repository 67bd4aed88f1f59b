"""Turns the weights of an ONNX export of a BERT encoder into safetensors with Hugging Face names.

Standard library only: a reader for the few protobuf fields of ONNX that carry weights, a map from
graph nodes to parameter names, and a safetensors writer. fp32 and fp16 weights are copied bit for bit
(linear weights transposed, since ONNX multiplies from the right); quantized graphs are refused.

    python3 models/onnx_to_safetensors.py model.onnx model.safetensors
"""
import array
import json
import mmap
import struct
import sys

# TensorProto.DataType -> (safetensors dtype, bytes per element). Others are not weights of an encoder.
DTYPES = {1: ("F32", 4), 10: ("F16", 2)}


def varint(buf, at):
    value = shift = 0
    while True:
        byte = buf[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not protobuf: varint longer than 64 bits")


def fields(buf, at, end):
    """Yields (field number, value) of one message; length-delimited values are (start, end) offsets."""
    while at < end:
        key, at = varint(buf, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(buf, at)
        elif wire == 1:
            value, at = buf[at:at + 8], at + 8
        elif wire == 2:
            length, at = varint(buf, at)
            value, at = (at, at + length), at + length
        elif wire == 5:
            value, at = buf[at:at + 4], at + 4
        else:
            raise ValueError(f"not protobuf: wire type {wire}")
        if at > end:
            raise ValueError("not protobuf, or cut short: a field runs past its message")
        yield key >> 3, value


def text(buf, span):
    return buf[span[0]:span[1]].decode("utf-8")


def read_graph(buf):
    """Returns ({tensor name: (dtype, shape, raw bytes)}, [(op, node name, inputs, outputs)])."""
    # onnx.proto: ModelProto.graph = 7; GraphProto.node = 1, .initializer = 5.
    graph = next(value for number, value in fields(buf, 0, len(buf)) if number == 7)
    tensors, nodes = {}, []
    for number, value in fields(buf, *graph):
        if number == 1:
            nodes.append(read_node(buf, value))
        elif number == 5:
            name, tensor = read_tensor(buf, value)
            tensors[name] = tensor
    return tensors, nodes


def read_node(buf, span):
    # NodeProto: input = 1, output = 2, name = 3, op_type = 4.
    inputs, outputs, name, op = [], [], "", ""
    for number, value in fields(buf, *span):
        if number == 1:
            inputs.append(text(buf, value))
        elif number == 2:
            outputs.append(text(buf, value))
        elif number == 3:
            name = text(buf, value)
        elif number == 4:
            op = text(buf, value)
    return op, name, inputs, outputs


def read_tensor(buf, span):
    # TensorProto: dims = 1, data_type = 2, float_data = 4, name = 8, raw_data = 9, data_location = 14.
    shape, dtype, name, raw = [], 0, "", b""
    for number, value in fields(buf, *span):
        if number == 1:
            if isinstance(value, tuple):  # packed
                at, end = value
                while at < end:
                    dim, at = varint(buf, at)
                    shape.append(dim)
            else:
                shape.append(value)
        elif number == 2:
            dtype = value
        elif number == 4 and isinstance(value, tuple):
            raw = buf[value[0]:value[1]]
        elif number == 8:
            name = text(buf, value)
        elif number == 9:
            raw = buf[value[0]:value[1]]
        elif number == 14 and value == 1:
            raise ValueError("weights lie in a second file (external data): not supported")
    return name, (dtype, shape, raw)


def transpose(dtype, shape, raw):
    code = "f" if dtype == 1 else "H"
    rows, cols = shape
    source = array.array(code)
    source.frombytes(raw)
    out = array.array(code)
    for col in range(cols):
        out.extend(source[col::cols])
    return dtype, [cols, rows], out.tobytes()


def weight_of_node(node_name):
    """'/encoder/layer.0/attention/self/query/MatMul' -> 'encoder.layer.0.attention.self.query.weight'"""
    return node_name.strip("/").rsplit("/", 1)[0].replace("/", ".") + ".weight"


def parameter_name(name):
    """Drops what an exporter's wrapper module put in front: 'model.0.auto_model.embeddings...'."""
    return name.rsplit("auto_model.", 1)[-1]


def convert(buf):
    """Returns {Hugging Face name: (dtype, shape, bytes)} for every weight of the graph."""
    tensors, nodes = read_graph(buf)
    weights = {}
    for name, (dtype, shape, raw) in tensors.items():
        if dtype in DTYPES and "." in name and "::" not in name and "/" not in name:
            weights[name] = (dtype, shape, raw)
    for op, name, inputs, _ in nodes:
        if op in ("MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "DequantizeLinear"):
            raise ValueError(f"the graph is quantized ({op}): its fp32 weights are gone")
        if op in ("MatMul", "Gemm"):
            for wanted in inputs[1:2]:
                if wanted in tensors and wanted not in weights:
                    tensor = tensors[wanted]
                    swapped = op == "MatMul" and len(tensor[1]) == 2
                    weights[weight_of_node(name)] = transpose(*tensor) if swapped else tensor
    for name, (dtype, shape, raw) in weights.items():
        count = 1
        for dim in shape:
            count *= dim
        if dtype not in DTYPES or len(raw) != count * DTYPES[dtype][1]:
            raise ValueError(f"{name}: {len(raw)} bytes do not fit type {dtype}, shape {shape}")
    return {parameter_name(k): (DTYPES[d][0], s, r) for k, (d, s, r) in weights.items()}


def write_safetensors(tensors, path, metadata=None):
    """Writes {name: (dtype, shape, bytes)}, names sorted, so that equal weights give equal files."""
    header, offset = {"__metadata__": metadata or {"format": "pt"}}, 0
    for name in sorted(tensors):
        dtype, shape, raw = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(tensors):
            out.write(tensors[name][2])


def read_safetensors(path):
    """Returns {name: (dtype, shape, bytes)}."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > 100_000_000:
            raise ValueError(f"{path}: not safetensors (header of {size} bytes)")
        header = json.loads(file.read(size))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def convert_file(onnx_path, safetensors_path):
    with open(onnx_path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buf:
        write_safetensors(convert(buf), safetensors_path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: onnx_to_safetensors.py model.onnx model.safetensors")
    convert_file(sys.argv[1], sys.argv[2])
