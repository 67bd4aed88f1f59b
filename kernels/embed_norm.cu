// Embedding lookup and its layer norm: the first op of an encoder.
//
//   y[t] = LayerNorm( word[token[t]] + position[p(t)] + type[type_id[t]] )
//   p(t) = t − cu_seqlens[row of t] + position_offset
//
//   token, type_id  [tokens]     u32     word      [vocabulary, hidden]  T
//   cu_seqlens      [rows + 1]   u32     position  [positions, hidden]   T, may be null
//   γ, β            [hidden]     f32     type      [types, hidden]       T, may be null
//   y               [tokens, hidden]  T
//
// Contract: src/ops/embed_norm.rs. T is f32, f16 or bf16; sum and norm are f32. Where the CPU op
// refuses an index that lies outside of its table, the kernel makes the token's row NaN: the host has
// checked the indices before, and an error here must not become an illegal access, which would cost
// the whole context.
//
// Tiling: a warp a token, as in residual_norm.cu. The row of a token is found by the warp together:
// 32 boundaries are compared at a time, which is one step for up to 31 rows and two for 1000.
//
// Launch: grid (⌈tokens / 4⌉, 1, 1), block (128, 1, 1), no dynamic shared memory.

#include "layer_norm.cuh"

namespace ferry {
namespace embed_norm {

constexpr int THREADS = 128;
constexpr int TOKENS = THREADS / WARP;

// The last row of the batch that begins at or before `token`.
__device__ __forceinline__ int row_of(unsigned token, const unsigned *cu_seqlens, int rows) {
    const int lane = threadIdx.x % WARP;
    int first = 0, count = rows + 1;
    while (count > 1) {
        const int step = (count + WARP - 1) / WARP;
        const int at = lane * step;
        const bool begun = at < count && cu_seqlens[first + at] <= token;
        const int last = (__popc(__ballot_sync(ALL_LANES, begun)) - 1) * step;
        first += last;
        count = min(step, count - last);
    }
    return first;
}

// One row of each table; those that there are not are null.
template <typename T> struct Sum {
    const T *word;
    const T *position;
    const T *type;

    static __device__ __forceinline__ void add(float (&sum)[VECTOR<T>], const T *row, int column) {
        float values[VECTOR<T>];
        load_vector(values, row + column);
#pragma unroll
        for (int i = 0; i < VECTOR<T>; i++) sum[i] += values[i];
    }
    __device__ __forceinline__ void load(int column, float (&sum)[VECTOR<T>]) const {
        load_vector(sum, word + column);
        if (position) add(sum, position, column);
        if (type) add(sum, type, column);
    }
    __device__ __forceinline__ float at(int column) const {
        float sum = to_float(word[column]);
        if (position) sum += to_float(position[column]);
        if (type) sum += to_float(type[column]);
        return sum;
    }
};

template <typename T>
__device__ __forceinline__ void run(T *y, const unsigned *token_ids, const unsigned *type_ids,
                                    const unsigned *cu_seqlens, const T *word, const T *position,
                                    const T *token_type, NormWeights norm, int tokens, int rows,
                                    int hidden, unsigned vocabulary, unsigned positions,
                                    unsigned types, unsigned position_offset) {
    const unsigned token = blockIdx.x * TOKENS + threadIdx.x / WARP;
    if (token >= unsigned(tokens)) return;
    y += size_t(token) * hidden;

    const unsigned id = token_ids[token];
    const unsigned type = token_type ? type_ids[token] : 0;
    const unsigned place =
        position ? token - cu_seqlens[row_of(token, cu_seqlens, rows)] + position_offset : 0;
    if (id >= vocabulary || (token_type && type >= types) || (position && place >= positions)) {
        for (int column = threadIdx.x % WARP; column < hidden; column += WARP)
            y[column] = from_float<T>(NAN);
        return;
    }
    const Sum<T> sum{word + size_t(id) * hidden,
                     position ? position + size_t(place) * hidden : nullptr,
                     token_type ? token_type + size_t(type) * hidden : nullptr};
    // A null table is aligned.
    const bool vectors = in_vectors(y, hidden) && in_vectors(word, hidden) &&
                         in_vectors(position, hidden) && in_vectors(token_type, hidden) &&
                         in_vectors(norm, hidden);
    normalize_row(y, sum, hidden, norm, vectors);
}

} // namespace embed_norm
} // namespace ferry

#define ENTRY(dtype, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ferry::embed_norm::THREADS) ferry_embed_norm_##dtype( \
        T *y, const unsigned *token_ids, const unsigned *type_ids, const unsigned *cu_seqlens,      \
        const T *word, const T *position, const T *token_type, const float *weight,                 \
        const float *bias, float epsilon, int tokens, int rows, int hidden, int vocabulary,         \
        int positions, int types, int position_offset) {                                            \
        ferry::embed_norm::run(y, token_ids, type_ids, cu_seqlens, word, position, token_type,      \
                               {weight, bias, epsilon}, tokens, rows, hidden, vocabulary,           \
                               positions, types, position_offset);                                  \
    }                                                                                               \
    FERRY_KERNEL(ferry_embed_norm_##dtype, ferry::embed_norm::THREADS)

ENTRY(f32, float);
ENTRY(f16, __half);
ENTRY(bf16, __nv_bfloat16);
