// Packed bidirectional attention: each token attends to all tokens of its own row of the batch, and
// to no other.
//
//   q, k, v = split(qkv + bias)                   per head, d = hidden / heads
//   y[i]    = Σⱼ softmaxⱼ(q[i]·k[j] / √d) · v[j]   j over the tokens of i's row
//
//   qkv         [tokens, 3 · hidden]  T     q, k, v side by side; in each the heads side by side
//   bias        [3 · hidden]          f32   may be null
//   cu_seqlens  [rows + 1]            u32
//   y           [tokens, hidden]      T
//
// Contract: src/ops/attention.rs. As there, the bias of k is left out, since softmax cancels it, and
// that of v is added to y, since softmax sums to 1. Computed as Dao et al. 2022 (arXiv:2205.14135)
// and Dao 2023 (arXiv:2307.08691): over tiles of keys, with a running maximum m and sum l a query.
//
// f16 and bf16, on tensor cores. A block of 4 warps has 64 queries of one head of one row, a warp 16
// of them. Q stays in registers as fragments. S = Q·Kᵀ of a tile of 64 keys comes out in the layout
// that P must have to go into P·V as the left fragment, so that P never leaves the registers; a
// query's scores lie in four neighbouring lanes. K and V pass through shared memory, each row
// padded by 16 bytes, by which the 8 rows of an ldmatrix begin in 8 different groups of banks. Copies
// run beside the arithmetic: V of a tile while S is computed, K of the next during P·V. Scores, m, l
// and y are f32; q + b and P are rounded to T, as is y at the end.
//
// f32, without tensor cores (attention_f32.cuh): 64 queries (32 for d > 64) by 32 keys, products from
// shared memory in registers' tiles.
//
// A head's dimension d is at most D of the entry point's name, columns beyond it are zeros. Where d
// is a multiple of 8 (f32: 4), as in all models, rows are read by 16 bytes; else number by number.
//
// Rows of the grid's third axis: a batch has at most 65535, and a block whose queries are beyond its
// row ends at once. The grid's first axis is for the longest row.
//
// Launch: grid (⌈longest / QUERIES⌉, heads, rows), block (128, 1, 1), no dynamic shared memory.
// QUERIES is 64; 32 for f32 of D = 128.
// Registers: the launch bounds hold D ≤ 64 to 128, which costs nothing (no spills; left alone ptxas
// takes 150) and lets 4 blocks run on a multiprocessor instead of 3. D = 128 needs some 230 for y's 64
// sums, Q's 32 and S's 32: 2 blocks. So does bf16 on sm_75, whose products go through registers: 3.

#include "attention_f32.cuh"
#include "fragments.cuh"

namespace ferry {
namespace attention {

constexpr int THREADS = 128;
constexpr int QUERIES = 64;
constexpr int KEYS = 64;
// Blocks that a multiprocessor has to have registers for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int RESIDENT = 3;
#else
constexpr int RESIDENT = 4;
#endif
// 8×8 matrices, and the depth of a product.
constexpr int EIGHT = 8;
constexpr int DEPTH = 16;

// A head of a row of the batch.
template <typename T> struct Head {
    const T *qkv; // of the row's first token
    int length;   // tokens of the row
    int hidden;
    int dim;
    int offset;   // first column of the head in q, k, v and y
    bool vectors; // may be read by 16 bytes
};

// Begins to copy K (part 1) or V (part 2) of a tile of keys to shared memory; zeros beyond the row
// of the batch and beyond `dim`. The copies are a group.
template <typename T, int D, int STRIDE>
__device__ __forceinline__ void copy_tile(T (&tile)[KEYS][STRIDE], const Head<T> &head, int part,
                                          int first) {
    constexpr int CHUNKS = D / VECTOR<T>;
    const T *start = head.qkv + part * head.hidden + head.offset;
#pragma unroll
    for (int i = 0; i < KEYS * CHUNKS / THREADS; i++) {
        const int chunk = i * THREADS + threadIdx.x;
        const int key = chunk / CHUNKS, column = chunk % CHUNKS * VECTOR<T>;
        const bool there = first + key < head.length && column < head.dim;
        const T *from = start + size_t(there ? first + key : 0) * (3 * head.hidden) + column;
        if (head.vectors) {
            copy_async(&tile[key][column], from, there);
        } else {
#pragma unroll
            for (int c = 0; c < VECTOR<T>; c++)
                tile[key][column + c] =
                    there && column + c < head.dim ? from[c] : from_float<T>(0.0f);
        }
    }
    commit_copies();
}

// Two neighbouring columns of a query, with their bias; zeros beyond the row and beyond `dim`.
template <typename T>
__device__ __forceinline__ unsigned load_query(const Head<T> &head, const float *bias, int query,
                                               int column) {
    if (query >= head.length || column >= head.dim) return 0;
    const T *from = head.qkv + size_t(query) * (3 * head.hidden) + head.offset + column;
    const bool both = head.vectors || column + 1 < head.dim;
    float2 pair = make_float2(0.0f, 0.0f);
    if (head.vectors) {
        pair = unpack<T>(*reinterpret_cast<const unsigned *>(from));
    } else {
        pair.x = to_float(from[0]);
        if (both) pair.y = to_float(from[1]);
    }
    if (bias) {
        pair.x += bias[head.offset + column];
        if (both) pair.y += bias[head.offset + column + 1];
    }
    return pack<T>(pair.x, pair.y);
}

template <typename T, int D>
__device__ __forceinline__ void run(T *y, const T *qkv, const float *bias, const unsigned *cu_seqlens,
                                    int hidden, int dim) {
    constexpr int STRIDE = D + 16 / int(sizeof(T));
    SHARED_ARRAY(T, keys, [KEYS][STRIDE]);
    SHARED_ARRAY(T, values, [KEYS][STRIDE]);

    const int begin = cu_seqlens[blockIdx.z];
    Head<T> head;
    head.length = int(cu_seqlens[blockIdx.z + 1]) - begin;
    const int first_query = blockIdx.x * QUERIES;
    if (first_query >= head.length) return;
    head.qkv = qkv + size_t(begin) * (3 * hidden);
    head.hidden = hidden;
    head.dim = dim;
    head.offset = blockIdx.y * dim;
    head.vectors = in_vectors(qkv, dim) && in_vectors(y, dim);

    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // This lane's two queries, of the 16 of its warp.
    const int query = first_query + threadIdx.x / WARP * 16 + g;

    copy_tile<T, D>(keys, head, 1, 0);
    unsigned q[D / DEPTH][4];
#pragma unroll
    for (int step = 0; step < D / DEPTH; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            q[step][i] =
                load_query(head, bias, query + i % 2 * 8, step * DEPTH + i / 2 * 8 + 2 * t);
    }

    // Scores are taken to base 2, where the device's exponential is one instruction.
    const float scale = rsqrtf(float(dim)) * 1.4426950408889634f;
    float max[2] = {-INFINITY, -INFINITY}; // m of the two queries
    float sum[2] = {0.0f, 0.0f};           // this lane's part of l
    float out[D / EIGHT][4] = {};

    for (int first = 0; first < head.length; first += KEYS) {
        wait_for_copies<0>();
        __syncthreads(); // K is here, and V of the tile before is not needed any more
        copy_tile<T, D>(values, head, 2, first);

        float s[KEYS / EIGHT][4] = {};
#pragma unroll
        for (int step = 0; step < D / DEPTH; step++) {
#pragma unroll
            for (int pair = 0; pair < KEYS / 16; pair++) {
                // Keys pair · 16 + 0..8 and + 8..16, each at the depths 0..8 and 8..16 of the step.
                unsigned k[4];
                load_matrices<false>(k, &keys[pair * 16 + lane / 16 * 8 + lane % 8]
                                             [step * DEPTH + lane / 8 % 2 * 8]);
                const unsigned low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
                multiply_add<T>(s[2 * pair], q[step], low);
                multiply_add<T>(s[2 * pair + 1], q[step], high);
            }
        }

        float tile_max[2] = {max[0], max[1]};
#pragma unroll
        for (int column = 0; column < KEYS / EIGHT; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool there = first + column * EIGHT + 2 * t + i % 2 < head.length;
                s[column][i] = there ? s[column][i] * scale : -INFINITY;
                tile_max[i / 2] = fmaxf(tile_max[i / 2], s[column][i]);
            }
        }
#pragma unroll
        for (int row = 0; row < 2; row++) {
            tile_max[row] = warp_max<4>(tile_max[row]);
            const float shrink = exp2f(max[row] - tile_max[row]);
            max[row] = tile_max[row];
            sum[row] *= shrink;
#pragma unroll
            for (int column = 0; column < D / EIGHT; column++) {
                out[column][2 * row] *= shrink;
                out[column][2 * row + 1] *= shrink;
            }
        }
        unsigned p[KEYS / DEPTH][4];
#pragma unroll
        for (int column = 0; column < KEYS / EIGHT; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[column][i] = exp2f(s[column][i] - max[i / 2]);
                sum[i / 2] += s[column][i];
            }
            p[column / 2][column % 2 * 2] = pack<T>(s[column][0], s[column][1]);
            p[column / 2][column % 2 * 2 + 1] = pack<T>(s[column][2], s[column][3]);
        }

        wait_for_copies<0>();
        __syncthreads(); // V is here, and K is not needed any more
        if (first + KEYS < head.length) copy_tile<T, D>(keys, head, 1, first + KEYS);
#pragma unroll
        for (int step = 0; step < KEYS / DEPTH; step++) {
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++) {
                // Columns pair · 16 + 0..8 and + 8..16, each at the keys 0..8 and 8..16 of the step.
                unsigned v[4];
                load_matrices<true>(v, &values[step * DEPTH + lane % 16][pair * 16 + lane / 16 * 8]);
                const unsigned low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
                multiply_add<T>(out[2 * pair], p[step], low);
                multiply_add<T>(out[2 * pair + 1], p[step], high);
            }
        }
    }

#pragma unroll
    for (int row = 0; row < 2; row++) {
        const float inverse = 1.0f / warp_sum<4>(sum[row]);
        if (query + row * 8 >= head.length) continue;
        T *to = y + size_t(begin + query + row * 8) * hidden + head.offset;
#pragma unroll
        for (int column = 0; column < D / EIGHT; column++) {
            const int at = column * EIGHT + 2 * t;
            float pair[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float b =
                    bias && at + i < dim ? bias[2 * hidden + head.offset + at + i] : 0.0f;
                pair[i] = fmaf(out[column][2 * row + i], inverse, b);
            }
            if (head.vectors) {
                if (at < dim)
                    *reinterpret_cast<unsigned *>(to + at) = pack<T>(pair[0], pair[1]);
            } else {
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (at + i < dim) to[at + i] = from_float<T>(pair[i]);
            }
        }
    }
}

} // namespace attention
} // namespace ferry

#define ENTRY(dtype, T, D, path)                                                                    \
    extern "C" __global__ void __launch_bounds__(ferry::attention::THREADS,                         \
                                                 D > 64 ? 2 : ferry::attention::RESIDENT)           \
        ferry_attention_##dtype##_d##D(T *y, const T *qkv, const float *bias,                       \
                                       const unsigned *cu_seqlens, int hidden, int dim) {           \
        ferry::path::run<T, D>(y, qkv, bias, cu_seqlens, hidden, dim);                              \
    }                                                                                               \
    FERRY_KERNEL(ferry_attention_##dtype##_d##D, ferry::attention::THREADS)

#define ENTRIES(D)                                                                                  \
    ENTRY(f32, float, D, attention_f32);                                                            \
    ENTRY(f16, __half, D, attention);                                                               \
    ENTRY(bf16, __nv_bfloat16, D, attention)

ENTRIES(32);
ENTRIES(64);
ENTRIES(128);
