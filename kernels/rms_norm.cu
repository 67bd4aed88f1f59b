// Root-mean-square normalization, alone and fused with the residual sums of a decoder layer.
//
//   rms(x) = x / sqrt(sum(x^2)/n + epsilon) * w
//
//   rms_norm            y = rms(x)
//   residual_rms_norm   x <- x + delta              then  y = rms_next(x)
//                       x <- x + rms_post(delta)    then  y = rms_next(x)
//
//   x, delta, y  [tokens, n]
//   w            [n]  f32, as multiplied
//
// Zhang & Sennrich 2019 (arXiv:1910.07467); the CPU twin is src/ops/rms_norm.rs. Sums are f32.
//
// Types. `_f32`, `_f16`, `_bf16`: everything that is not a weight. `_f32_f16` and `_f32_bf16`: the
// residual stream x in f32, delta and y in half the width: what large models in f16 need, whose
// residual stream leaves f16's range (Gemma). A sum that x's type rounds is normalized as rounded.
//
// Tiling. A block of THREADS does a row: it reads vectors of 16 bytes and keeps the row's first
// KEPT vectors per thread in registers between the sum and the product (8192 columns); what is
// beyond is read again, from L2. A row is summed in an order that depends on n alone.
//
// ABI. Grid (tokens), block (THREADS). Matrices start at a multiple of 16 bytes. `post_weight` may
// be null: the second form. n >= 1.
//   ferry_rms_norm_T(T* y, const X* x, const float* weight, int n, float epsilon)
//   ferry_residual_rms_norm_T(T* y, X* x, const T* delta, const float* post_weight,
//                             const float* next_weight, int n, float post_epsilon,
//                             float next_epsilon)

#include "vectors.cuh"

namespace ferry {
namespace rms_norm {

constexpr int THREADS = 256;
// Vectors of a row that a thread keeps in registers: 32 values, or 4 of rows that don't divide.
template <int V> constexpr int KEPT = V > 1 ? 32 / V : 4;

// Calls `visit(column, kept)` for each vector of V columns that this thread has in a row of n, with
// a place in registers for those that have one, else with one that is forgotten.
template <int V, typename Visit>
__device__ __forceinline__ void for_columns(int n, Floats<V> (&kept)[KEPT<V>], Visit visit) {
#pragma unroll
    for (int i = 0; i < KEPT<V>; ++i) {
        const int column = (i * THREADS + threadIdx.x) * V;
        if (column < n) visit(column, kept[i], true);
    }
    for (int column = (KEPT<V> * THREADS + threadIdx.x) * V; column < n; column += THREADS * V) {
        Floats<V> forgotten;
        visit(column, forgotten, false);
    }
}

// What a row is multiplied by before its gains; `squares` is this thread's part of the sum.
__device__ __forceinline__ float inverse_rms(float squares, int n, float epsilon) {
    return 1.0f / sqrtf(block_sum<THREADS>(squares) / n + epsilon);
}

template <int V> __device__ __forceinline__ float squares_of(const Floats<V> &x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < V; ++i) sum = fmaf(x.at[i], x.at[i], sum);
    return sum;
}

template <int V, typename T> __device__ __forceinline__ void
store_scaled(T *y, const Floats<V> &x, float inverse, const float *weight) {
    const Floats<V> w = load<V>(weight);
    Floats<V> scaled;
#pragma unroll
    for (int i = 0; i < V; ++i) scaled.at[i] = x.at[i] * inverse * w.at[i];
    store<V>(y, scaled);
}

template <int V, typename X, typename T>
__device__ void norm_row(T *y, const X *x, const float *weight, int n, float epsilon) {
    Floats<V> kept[KEPT<V>];
    float squares = 0.0f;
    for_columns<V>(n, kept, [&](int column, Floats<V> &values, bool) {
        values = load<V>(x + column);
        squares += squares_of<V>(values);
    });
    const float inverse = inverse_rms(squares, n, epsilon);
    for_columns<V>(n, kept, [&](int column, Floats<V> &values, bool is_kept) {
        if (!is_kept) values = load<V>(x + column);
        store_scaled<V>(y + column, values, inverse, weight + column);
    });
}

template <int V, typename X, typename T>
__device__ void residual_row(T *y, X *x, const T *delta, const float *post_weight,
                             const float *next_weight, int n, float post_epsilon,
                             float next_epsilon) {
    Floats<V> kept[KEPT<V>];
    float inverse = 1.0f;
    if (post_weight != nullptr) {
        float squares = 0.0f;
        for_columns<V>(n, kept, [&](int column, Floats<V> &values, bool) {
            values = load<V>(delta + column);
            squares += squares_of<V>(values);
        });
        inverse = inverse_rms(squares, n, post_epsilon);
    }
    float squares = 0.0f;
    for_columns<V>(n, kept, [&](int column, Floats<V> &values, bool is_kept) {
        if (post_weight == nullptr || !is_kept) values = load<V>(delta + column);
        const Floats<V> before = load<V>(x + column);
        if (post_weight != nullptr) {
            const Floats<V> w = load<V>(post_weight + column);
#pragma unroll
            for (int i = 0; i < V; ++i) values.at[i] = values.at[i] * inverse * w.at[i];
        }
#pragma unroll
        for (int i = 0; i < V; ++i)
            values.at[i] = to_float(from_float<X>(before.at[i] + values.at[i]));
        store<V>(x + column, values);
        squares += squares_of<V>(values);
    });
    inverse = inverse_rms(squares, n, next_epsilon);
    // What is read again, this thread wrote.
    for_columns<V>(n, kept, [&](int column, Floats<V> &values, bool is_kept) {
        if (!is_kept) values = load<V>(x + column);
        store_scaled<V>(y + column, values, inverse, next_weight + column);
    });
}

template <typename X, typename T>
__device__ __forceinline__ void norm(T *y, const X *x, const float *weight, int n, float epsilon) {
    const size_t row = static_cast<size_t>(blockIdx.x) * n;
    if (n % VECTOR<T> == 0) {
        norm_row<VECTOR<T>>(y + row, x + row, weight, n, epsilon);
    } else {
        norm_row<1>(y + row, x + row, weight, n, epsilon);
    }
}

template <typename X, typename T>
__device__ __forceinline__ void residual(T *y, X *x, const T *delta, const float *post_weight,
                                         const float *next_weight, int n, float post_epsilon,
                                         float next_epsilon) {
    const size_t row = static_cast<size_t>(blockIdx.x) * n;
    if (n % VECTOR<T> == 0) {
        residual_row<VECTOR<T>>(y + row, x + row, delta + row, post_weight, next_weight, n,
                                post_epsilon, next_epsilon);
    } else {
        residual_row<1>(y + row, x + row, delta + row, post_weight, next_weight, n, post_epsilon,
                        next_epsilon);
    }
}

} // namespace rms_norm
} // namespace ferry

#define ENTRY(dtype, X, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(ferry::rms_norm::THREADS, 3)                      \
        ferry_rms_norm_##dtype(T *y, const X *x, const float *weight, int n, float epsilon) {      \
        ferry::rms_norm::norm(y, x, weight, n, epsilon);                                           \
    }                                                                                              \
    FERRY_KERNEL(ferry_rms_norm_##dtype, ferry::rms_norm::THREADS);                                \
    extern "C" __global__ void __launch_bounds__(ferry::rms_norm::THREADS, 3)                      \
        ferry_residual_rms_norm_##dtype(T *y, X *x, const T *delta, const float *post_weight,      \
                                        const float *next_weight, int n, float post_epsilon,       \
                                        float next_epsilon) {                                      \
        ferry::rms_norm::residual(y, x, delta, post_weight, next_weight, n, post_epsilon,          \
                                  next_epsilon);                                                   \
    }                                                                                              \
    FERRY_KERNEL(ferry_residual_rms_norm_##dtype, ferry::rms_norm::THREADS)

ENTRY(f32, float, float);
ENTRY(f16, __half, __half);
ENTRY(bf16, __nv_bfloat16, __nv_bfloat16);
ENTRY(f32_f16, float, __half);
ENTRY(f32_bf16, float, __nv_bfloat16);
