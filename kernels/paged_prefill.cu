// Causal attention of runs of new tokens over a paged cache: prompts, and parts of them.
//
//   s_j = scale * q.k[j]                      optionally s_j <- c * tanh(s_j / c)
//   y   = sum_j softmax_j(s) * v[j]           j <= p and j > p - window
//
//   q             [tokens, heads * d]  T      query head h uses K and V of h / (heads / kv_heads)
//   keys, values  the cache of rope.cu  C     the new tokens' are in it already
//   y             [tokens, heads * d]  T
//
// The CPU twin is src/ops/paged_attention/; the algorithm is that of attention.cu, where it is
// explained (Dao 2023, arXiv:2307.08691), with keys that come through a table of blocks.
//
// Order. Tiles of KEYS keys begin at multiples of KEYS of the *position*; a tile of which a query sees
// nothing changes nothing of it. So a token's result does not depend on the chunk or the batch that
// it comes in. (It differs from paged_decode's in the last bits of C: here weights are rounded to C.)
//
// Tiling. A block of 4 warps has QUERIES queries that share a key head: the group's heads of a token,
// then those of the next, so that K and V are read once for all of them and short runs fill tiles
// too. Q (of up to 128 dimensions) stays in registers as fragments of C, as do P and the sums. A tile's K and V lie in shared
// memory, 8 dimensions to a piece of 16 bytes, piece p of key j at place p ^ (j % 8): the 8 pieces
// of an ldmatrix lie in different banks, as do those that 8 threads write. V of a tile is copied
// while scores are computed, K of the next one while sums are.
//
// f32 caches have no tensor cores that are as exact: their prompts go through paged_decode, a row
// for each token.
//
// ABI. Grid (ceil(longest * group / QUERIES), kv_heads, rows), block (THREADS); longest: the most
// tokens of a row; group = heads / kv_heads. A row is a run of tokens of one sequence:
// `first_tokens[row]` its first in q and y, `first_positions[row]` that one's position,
// `lengths[row]` its tokens (0: none). `tables`: [rows, table_stride], as for paged_decode. d a multiple
// of 8, at most D of the entry point's name; blocks * kv_heads * block_size below 2^31.
// window 0: all; softcap 0: none.
//   ferry_paged_prefill_dD_T_C(T* y, const T* q, const C* keys, const C* values,
//                              const int* first_tokens, const int* first_positions,
//                              const int* lengths, const int* tables, int table_stride, int heads,
//                              int kv_heads, int head_dim, int block_size, int window, float scale,
//                              float softcap)
//   D: 64, 128, 256; T_C: f32_f16, f32_bf16, f16_f16, bf16_bf16
// On sm_75 bf16 is computed without tensor cores (fragments.cuh).

#include "fragments.cuh"
#include "vectors.cuh"

namespace ferry {
namespace paged_prefill {

constexpr int THREADS = 128;
constexpr int QUERIES = 64;
// 8x8 matrices, pieces of 16 bytes; and the depth of a product.
constexpr int EIGHT = 8;
constexpr int DEPTH = 16;
// Sums of 256 dimensions leave fewer registers for scores, and none for Q.
template <int D> constexpr int KEYS = D == 256 ? 32 : 64;
template <int D> constexpr bool KEEPS_Q = D < 256;
// Below every score: the difference of two is never NaN.
constexpr float LOWEST = -3.0e38f;
constexpr float LOG2_E = 1.44269504f;

// A key head of a row's sequence, and which of its positions the block looks at.
template <typename C> struct Source {
    const C *keys;
    const C *values;
    const int *table;
    int kv_heads;
    int kv_head;
    int dim;
    int block_size;
    int begin;
    int end;
};

template <typename C, int D>
__device__ __forceinline__ C *piece(C (&tile)[KEYS<D>][D], int key, int column) {
    return &tile[key][((column / EIGHT) ^ (key % EIGHT)) * EIGHT];
}

// Begins to copy K of a tile; zeros for what is not looked at and beyond `dim`. Notes for V where
// the keys' rows are. A thread has one key, and neighbours have neighbours.
template <typename C, int D> __device__ __forceinline__ void
copy_keys(C (&tile)[KEYS<D>][D], int (&rows)[KEYS<D>], const Source<C> &source, int first) {
    const int key = threadIdx.x % KEYS<D>;
    const int position = first + key;
    const bool seen = position >= source.begin && position < source.end;
    const int block = seen ? source.table[position / source.block_size] : 0;
    const int place = seen ? position % source.block_size : 0;
    const size_t block_head = static_cast<size_t>(block) * source.kv_heads + source.kv_head;
    if (threadIdx.x < KEYS<D>) {
        rows[key] = seen ? static_cast<int>(block_head) * source.block_size + place : -1;
    }
    const C *from = source.keys + (block_head * source.dim * source.block_size + place * EIGHT);
#pragma unroll 4
    for (int part = threadIdx.x / KEYS<D>; part < D / EIGHT; part += THREADS / KEYS<D>) {
        const bool there = seen && part * EIGHT < source.dim;
        const C *at =
            there ? from + static_cast<size_t>(part) * source.block_size * EIGHT : source.keys;
        copy_async(piece<C, D>(tile, key, part * EIGHT), at, there);
    }
    commit_copies();
}

// Begins to copy V of a tile. Neighbouring threads have neighbouring pieces of a key.
template <typename C, int D> __device__ __forceinline__ void
copy_values(C (&tile)[KEYS<D>][D], const int (&rows)[KEYS<D>], const Source<C> &source) {
    constexpr int PIECES = D / EIGHT;
    const int column = threadIdx.x % PIECES * EIGHT;
#pragma unroll 4
    for (int key = threadIdx.x / PIECES; key < KEYS<D>; key += THREADS / PIECES) {
        const bool there = rows[key] >= 0 && column < source.dim;
        const C *at = there ? source.values + static_cast<size_t>(rows[key]) * source.dim + column
                            : source.values;
        copy_async(piece<C, D>(tile, key, column), at, there);
    }
    commit_copies();
}

// This lane's part of the 16 dimensions of a step, of its two queries; 0 for what does not exist.
template <typename C, typename T>
__device__ __forceinline__ void load_queries(unsigned (&to)[4], const T *q,
                                             const size_t (&places)[2], const bool (&exist)[2],
                                             int step, int dim) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int column = step * DEPTH + i / 2 * 8 + threadIdx.x % 4 * 2;
        to[i] = 0;
        if (exist[i % 2] && column < dim) {
            const Floats<2> pair = load<2>(q + places[i % 2] + column);
            to[i] = pack<C>(bounded<C>(pair.at[0]), bounded<C>(pair.at[1]));
        }
    }
}

template <int D, typename T, typename C> __device__ __forceinline__ void
attend(T *y, const T *q, const C *keys, const C *values, const int *first_tokens,
       const int *first_positions, const int *lengths, const int *tables, int table_stride,
       int heads, int kv_heads, int dim, int block_size, int window, float scale, float softcap) {
    constexpr int KEYS = paged_prefill::KEYS<D>;
    // Steps whose loads of Q may be under way together.
    [[maybe_unused]] constexpr int AT_ONCE = KEEPS_Q<D> ? D / DEPTH : 4;
    SHARED_ARRAY(C, key_tile, [KEYS][D]);
    SHARED_ARRAY(C, value_tile, [KEYS][D]);
    SHARED_ARRAY(int, rows, [KEYS]);

    const int row = blockIdx.z;
    const int group = heads / kv_heads;
    const int queries = lengths[row] * group;
    const int first_query = blockIdx.x * QUERIES;
    if (first_query >= queries) return;
    const int first_position = first_positions[row];
    const int last_query = min(first_query + QUERIES, queries) - 1;
    Source<C> source;
    source.keys = keys;
    source.values = values;
    source.table = tables + static_cast<size_t>(row) * table_stride;
    source.kv_heads = kv_heads;
    source.kv_head = blockIdx.y;
    source.dim = dim;
    source.block_size = block_size;
    source.begin = window > 0 ? max(first_position + first_query / group + 1 - window, 0) : 0;
    source.end = first_position + last_query / group + 1;

    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // This lane's two queries: where they are in q and y, and what they see.
    size_t places[2];
    int positions[2];
    bool exist[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int query = first_query + threadIdx.x / WARP * 16 + g + i * 8;
        exist[i] = query < queries;
        const int token = query / group;
        positions[i] = first_position + token;
        places[i] = (static_cast<size_t>(first_tokens[row] + token) * heads + blockIdx.y * group +
                     query % group) *
                    dim;
    }

    int first = source.begin / KEYS * KEYS;
    copy_keys<C, D>(key_tile, rows, source, first);
    unsigned kept[KEEPS_Q<D> ? D / DEPTH : 1][4];
    if constexpr (KEEPS_Q<D>) {
#pragma unroll
        for (int step = 0; step < D / DEPTH; step++)
            load_queries<C>(kept[step], q, places, exist, step, dim);
    }

    float highest[2] = {LOWEST, LOWEST};
    float sum[2] = {0.0f, 0.0f}; // this lane's part
    float out[D / EIGHT][4] = {};
    for (; first < source.end; first += KEYS) {
        wait_for_copies<0>();
        __syncthreads(); // K is here, and V of the tile before is not needed any more
        copy_values<C, D>(value_tile, rows, source);

        float s[KEYS / EIGHT][4] = {};
#pragma unroll AT_ONCE
        for (int step = 0; step < D / DEPTH; step++) {
            unsigned (&queries)[4] = kept[KEEPS_Q<D> ? step : 0];
            // Read again from L1.
            if constexpr (!KEEPS_Q<D>) load_queries<C>(queries, q, places, exist, step, dim);
#pragma unroll
            for (int pair = 0; pair < KEYS / 16; pair++) {
                // Keys pair * 16 + 0..8 and + 8..16, each at the depths 0..8 and 8..16 of the step.
                unsigned k[4];
                load_matrices<false>(k, piece<C, D>(key_tile, pair * 16 + lane / 16 * 8 + lane % 8,
                                                    step * DEPTH + lane / 8 % 2 * 8));
                const unsigned low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
                multiply_add<C>(s[2 * pair], queries, low);
                multiply_add<C>(s[2 * pair + 1], queries, high);
            }
        }

        float tile_highest[2] = {highest[0], highest[1]};
#pragma unroll
        for (int column = 0; column < KEYS / EIGHT; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first + column * EIGHT + 2 * t + i % 2;
                const int position = positions[i / 2];
                const bool seen = key <= position && (window == 0 || key > position - window);
                float score = s[column][i] * scale;
                if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
                s[column][i] = seen ? score * LOG2_E : -INFINITY;
                tile_highest[i / 2] = fmaxf(tile_highest[i / 2], s[column][i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            tile_highest[i] = warp_max<4>(tile_highest[i]);
            const float shrink = exp2f(highest[i] - tile_highest[i]);
            highest[i] = tile_highest[i];
            sum[i] *= shrink;
#pragma unroll
            for (int column = 0; column < D / EIGHT; column++) {
                out[column][2 * i] *= shrink;
                out[column][2 * i + 1] *= shrink;
            }
        }
        unsigned p[KEYS / DEPTH][4];
#pragma unroll
        for (int column = 0; column < KEYS / EIGHT; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[column][i] = exp2f(s[column][i] - highest[i / 2]);
                sum[i / 2] += s[column][i];
            }
            p[column / 2][column % 2 * 2] = pack<C>(s[column][0], s[column][1]);
            p[column / 2][column % 2 * 2 + 1] = pack<C>(s[column][2], s[column][3]);
        }

        wait_for_copies<0>();
        __syncthreads(); // V is here, and K is not needed any more
        if (first + KEYS < source.end) copy_keys<C, D>(key_tile, rows, source, first + KEYS);
#pragma unroll
        for (int step = 0; step < KEYS / DEPTH; step++) {
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++) {
                // Columns pair * 16 + 0..8 and + 8..16, each at the keys 0..8 and 8..16 of the step.
                unsigned v[4];
                load_matrices<true>(v, piece<C, D>(value_tile, step * DEPTH + lane % 16,
                                                   pair * 16 + lane / 16 * 8));
                const unsigned low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
                multiply_add<C>(out[2 * pair], p[step], low);
                multiply_add<C>(out[2 * pair + 1], p[step], high);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float inverse = 1.0f / warp_sum<4>(sum[i]);
        if (!exist[i]) continue;
#pragma unroll
        for (int column = 0; column < D / EIGHT; column++) {
            const int at = column * EIGHT + 2 * t;
            if (at >= dim) break;
            const Floats<2> pair = {
                {out[column][2 * i] * inverse, out[column][2 * i + 1] * inverse}};
            store<2>(y + places[i] + at, pair);
        }
    }
}

} // namespace paged_prefill
} // namespace ferry

#define ENTRY(D, dtypes, T, C)                                                                     \
    extern "C" __global__ void __launch_bounds__(ferry::paged_prefill::THREADS, 2)                 \
        ferry_paged_prefill_d##D##_##dtypes(                                                       \
            T *y, const T *q, const C *keys, const C *values, const int *first_tokens,             \
            const int *first_positions, const int *lengths, const int *tables, int table_stride,   \
            int heads, int kv_heads, int head_dim, int block_size, int window, float scale,        \
            float softcap) {                                                                       \
        ferry::paged_prefill::attend<D>(y, q, keys, values, first_tokens, first_positions,         \
                                        lengths, tables, table_stride, heads, kv_heads, head_dim,  \
                                        block_size, window, scale, softcap);                       \
    }                                                                                              \
    FERRY_KERNEL(ferry_paged_prefill_d##D##_##dtypes, ferry::paged_prefill::THREADS)

#define ENTRIES(dtypes, T, C)                                                                      \
    ENTRY(64, dtypes, T, C);                                                                       \
    ENTRY(128, dtypes, T, C);                                                                      \
    ENTRY(256, dtypes, T, C)

ENTRIES(f32_f16, float, __half);
ENTRIES(f32_bf16, float, __nv_bfloat16);
ENTRIES(f16_f16, __half, __half);
ENTRIES(bf16_bf16, __nv_bfloat16, __nv_bfloat16);
