// y = act(gate) * up: the middle of a gated feed-forward block.
//
//   gate_up  [tokens, 2n]   of the fused projection: gate, then up
//   y        [tokens, n]
//
// Shazeer 2020 (arXiv:2002.05202): SwiGLU with SILU (Llama), GeGLU with GELU_TANH (Gemma). The CPU
// twin is src/ops/gated.rs. Computed in f32, rounded once.
//
// Tiling. A thread does one vector of 16 bytes of y; a block THREADS neighbouring ones of a row. All
// is streamed, so that there is nothing to share.
//
// ABI. Grid (tokens, ceil(n / COLUMNS)) with COLUMNS = THREADS * 16 / sizeof(T): 1024 of f32, 2048
// of f16 and bf16; block (THREADS). Matrices start at a multiple of 16 bytes. `activation` is that
// of activation.cuh.
//   ferry_gated_T(T* y, const T* gate_up, int n, int activation)

#include "activation.cuh"
#include "vectors.cuh"

namespace ferry {
namespace gated {

constexpr int THREADS = 256;

template <int V, int activation, typename T>
__device__ __forceinline__ void gate(T *y, const T *gate, const T *up) {
    const Floats<V> g = load<V>(gate);
    const Floats<V> u = load<V>(up);
    Floats<V> product;
#pragma unroll
    for (int i = 0; i < V; ++i) product.at[i] = activate<activation>(g.at[i]) * u.at[i];
    store<V>(y, product);
}

template <int activation, typename T>
__device__ __forceinline__ void gate_row(T *y, const T *gate_up, int n) {
    constexpr int V = VECTOR<T>;
    const size_t token = blockIdx.x;
    y += token * n;
    gate_up += token * 2 * n;
    const int column = (blockIdx.y * THREADS + threadIdx.x) * V;
    if (n % V == 0) {
        if (column < n) gate<V, activation>(y + column, gate_up + column, gate_up + n + column);
    } else {
        // Rows do not start at multiples of a vector. Neighbouring threads read neighbouring values.
        const int end = min(n, static_cast<int>(blockIdx.y + 1) * THREADS * V);
        for (int c = blockIdx.y * THREADS * V + threadIdx.x; c < end; c += THREADS)
            gate<1, activation>(y + c, gate_up + c, gate_up + n + c);
    }
}

template <typename T>
__device__ __forceinline__ void run(T *y, const T *gate_up, int n, int activation) {
    switch (activation) {
    case GELU: return gate_row<GELU>(y, gate_up, n);
    case GELU_TANH: return gate_row<GELU_TANH>(y, gate_up, n);
    case RELU: return gate_row<RELU>(y, gate_up, n);
    case TANH: return gate_row<TANH>(y, gate_up, n);
    case SILU: return gate_row<SILU>(y, gate_up, n);
    default: return gate_row<IDENTITY>(y, gate_up, n);
    }
}

} // namespace gated
} // namespace ferry

#define ENTRY(dtype, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(ferry::gated::THREADS)                            \
        ferry_gated_##dtype(T *y, const T *gate_up, int n, int activation) {                       \
        ferry::gated::run(y, gate_up, n, activation);                                         \
    }                                                                                              \
    FERRY_KERNEL(ferry_gated_##dtype, ferry::gated::THREADS)

ENTRY(f32, float);
ENTRY(f16, __half);
ENTRY(bf16, __nv_bfloat16);
