// y = LayerNorm(x + bias + residual): the end of each half of a post-norm encoder layer.
//
//   x, residual  [tokens, hidden]  T       y overwrites x
//   bias, γ, β   [hidden]          f32     the bias is that of the linear that made x
//
// Contract: src/ops/residual_norm.rs. T is f32, f16 or bf16; the sum and the norm are f32, rounded
// once at the end. One read of x and of residual and one write of y: the kernel moves
// 3 · tokens · hidden · sizeof(T) bytes and is bound by that.
//
// Tiling: a warp a row (layer_norm.cuh), no shared memory, no barrier. Four rows a block of 128
// threads: small blocks leave the fewest lanes idle at the end of a batch of few tokens.
//
// Launch: grid (⌈tokens / 4⌉, 1, 1), block (128, 1, 1), no dynamic shared memory.

#include "layer_norm.cuh"

namespace ferry {
namespace residual_norm {

constexpr int THREADS = 128;
constexpr int ROWS = THREADS / WARP;

template <typename T> struct Sum {
    const T *x;
    const T *residual;
    const float *bias;

    __device__ __forceinline__ void load(int column, float (&sum)[VECTOR<T>]) const {
        float r[VECTOR<T>], b[VECTOR<T>];
        load_vector(sum, x + column);
        load_vector(r, residual + column);
        load_floats(b, bias + column);
#pragma unroll
        for (int i = 0; i < VECTOR<T>; i++) sum[i] += r[i] + b[i];
    }
    __device__ __forceinline__ float at(int column) const {
        return to_float(x[column]) + (to_float(residual[column]) + bias[column]);
    }
};

template <typename T>
__device__ __forceinline__ void run(T *x, const T *residual, const float *bias, NormWeights norm,
                                    int tokens, int hidden) {
    const int token = blockIdx.x * ROWS + threadIdx.x / WARP;
    if (token >= tokens) return;
    const bool vectors = in_vectors(x, hidden) && in_vectors(residual, hidden) &&
                         in_vectors(bias, hidden) && in_vectors(norm, hidden);
    const size_t start = size_t(token) * hidden;
    const Sum<T> sum{x + start, residual + start, bias};
    normalize_row(x + start, sum, hidden, norm, vectors);
}

} // namespace residual_norm
} // namespace ferry

#define ENTRY(dtype, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ferry::residual_norm::THREADS)                     \
        ferry_residual_norm_##dtype(T *x, const T *residual, const float *bias, const float *weight, \
                                    const float *norm_bias, float epsilon, int tokens, int hidden) { \
        ferry::residual_norm::run(x, residual, bias, {weight, norm_bias, epsilon}, tokens, hidden);  \
    }                                                                                               \
    FERRY_KERNEL(ferry_residual_norm_##dtype, ferry::residual_norm::THREADS)

ENTRY(f32, float);
ENTRY(f16, __half);
ENTRY(bf16, __nv_bfloat16);
