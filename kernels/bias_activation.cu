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

#include "common.cuh"

namespace ferry {
namespace bias_activation {

constexpr int THREADS = 128;

// As `Activation` of src/ops/activation.rs.
enum Activation { IDENTITY, GELU, GELU_TANH, RELU, TANH, SILU };

// NaN stays NaN in each of them, RELU too.
template <int activation> __device__ __forceinline__ float activate(float x) {
    switch (activation) {
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case GELU_TANH: {
        const float u = 0.7978845608028654f * x * fmaf(0.044715f * x, x, 1.0f);
        const float tanh_u = 1.0f - 2.0f / (__expf(2.0f * u) + 1.0f);
        return 0.5f * x * (1.0f + tanh_u);
    }
    case RELU: return x < 0.0f ? 0.0f : x;
    case TANH: return tanhf(x);
    case SILU: return x / (1.0f + __expf(-x));
    default: return x;
    }
}

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
