// x ← act(x + bias), in place: the end of the first linear of a feed-forward block; with the identity,
// the bias of any linear.
//
//   x     [tokens, features]  T
//   bias  [features]          f32
//
// Contract: src/ops/activation.rs, whose activations are numbered as in its enum. T is f32, f16 or
// bf16; the arithmetic is f32. GELU's erf and the plain tanh are the device library's, to some 2 ulp.
// The tanh of the approximate GELU is 1 − 2 / (e^2u + 1) with the hardware's exponential: its error,
// 1e-6 where tanh is near 0, is absolute and multiplied by x.
//
// Tiling: a block a token, its 128 threads over the columns, 16 bytes each at a time; no index needs a
// division, and one token of 1536 features still keeps 128 lanes busy. Bound by memory: 2 · tokens ·
// features · sizeof(T) bytes.
//
// Launch: grid (tokens, 1, 1), block (128, 1, 1), no dynamic shared memory.

#include "activation.cuh"

namespace ferry {
namespace bias_activation {

constexpr int THREADS = 128;

template <typename T, int activation>
__device__ __forceinline__ void activate_row(T *x, const float *bias, int features) {
    constexpr int V = VECTOR<T>;
    if (in_vectors(x, features) && in_vectors(bias, features)) {
        for (int column = threadIdx.x * V; column < features; column += THREADS * V) {
            float values[V], b[V];
            load_vector(values, x + column);
            load_floats(b, bias + column);
#pragma unroll
            for (int i = 0; i < V; i++) values[i] = activate<activation>(values[i] + b[i]);
            store_vector(x + column, values);
        }
    } else {
        for (int column = threadIdx.x; column < features; column += THREADS)
            x[column] = from_float<T>(activate<activation>(to_float(x[column]) + bias[column]));
    }
}

template <typename T>
__device__ __forceinline__ void run(T *x, const float *bias, int features, int activation) {
    x += size_t(blockIdx.x) * features;
    switch (activation) {
    case IDENTITY: return activate_row<T, IDENTITY>(x, bias, features);
    case GELU: return activate_row<T, GELU>(x, bias, features);
    case GELU_TANH: return activate_row<T, GELU_TANH>(x, bias, features);
    case RELU: return activate_row<T, RELU>(x, bias, features);
    case TANH: return activate_row<T, TANH>(x, bias, features);
    case SILU: return activate_row<T, SILU>(x, bias, features);
    }
}

} // namespace bias_activation
} // namespace ferry

#define ENTRY(dtype, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ferry::bias_activation::THREADS)                   \
        ferry_bias_activation_##dtype(T *x, const float *bias, int features, int activation) {      \
        ferry::bias_activation::run(x, bias, features, activation);                                 \
    }                                                                                               \
    FERRY_KERNEL(ferry_bias_activation_##dtype, ferry::bias_activation::THREADS)

ENTRY(f32, float);
ENTRY(f16, __half);
ENTRY(bf16, __nv_bfloat16);
