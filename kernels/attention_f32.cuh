// The f32 form of attention.cu, without tensor cores; formula and layouts are there.
//
// A block of 128 threads has 64 queries (32 for D = 128, to fit 48 KiB) of one head of one row, and
// goes over tiles of 32 keys. Threads are 16 × 8: in S a thread has 4 (2) queries by 4 keys, the sums
// in registers; in y the same queries by D / 8 columns. A query's 8 threads are neighbouring lanes:
// its maximum and sum are shuffles among them. K and V take turns in one tile of shared memory.
//
// Rows of shared memory are padded by 16 bytes: 8 neighbouring lanes read 8 rows of K (or 8
// neighbouring pieces of a row of V) of 16 bytes each, all in different banks.

#pragma once

#include "common.cuh"

namespace ferry {
namespace attention_f32 {

constexpr int THREADS = 128;
constexpr int KEYS = 32;
// Threads of a query, and their keys.
constexpr int GROUP = 8;
constexpr int GROUPS = THREADS / GROUP;

// Copies `rows` rows of K, V or Q: zeros beyond the row of the batch and beyond `dim`.
template <int ROWS, int D>
__device__ __forceinline__ void copy_rows(float (&tile)[ROWS][D + 4], const float *start, int stride,
                                          int first, int length, int dim, bool vectors) {
    constexpr int CHUNKS = D / 4;
#pragma unroll 4
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int chunk = i * THREADS + threadIdx.x;
        const int row = chunk / CHUNKS, column = chunk % CHUNKS * 4;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < length && column < dim) {
            const float *from = start + size_t(first + row) * stride + column;
            if (vectors) {
                value = *reinterpret_cast<const float4 *>(from);
            } else {
                value.x = from[0];
                if (column + 1 < dim) value.y = from[1];
                if (column + 2 < dim) value.z = from[2];
                if (column + 3 < dim) value.w = from[3];
            }
        }
        *reinterpret_cast<float4 *>(&tile[row][column]) = value;
    }
}

__device__ __forceinline__ void load4(float (&to)[4], const float *from) {
    const float4 values = *reinterpret_cast<const float4 *>(from);
    to[0] = values.x, to[1] = values.y, to[2] = values.z, to[3] = values.w;
}

template <typename T, int D>
__device__ __forceinline__ void run(T *y, const T *qkv, const float *bias,
                                    const unsigned *cu_seqlens, int hidden, int dim) {
    constexpr int QUERIES = D > 64 ? 32 : 64;
    constexpr int ROWS = QUERIES / GROUPS; // queries of a thread
    SHARED_ARRAY(float, queries, [QUERIES][D + 4]);
    SHARED_ARRAY(float, tile, [KEYS][D + 4]); // of K, then of V
    SHARED_ARRAY(float, weights, [QUERIES][KEYS + 4]);

    const int begin = cu_seqlens[blockIdx.z];
    const int length = int(cu_seqlens[blockIdx.z + 1]) - begin;
    const int first_query = blockIdx.x * QUERIES;
    if (first_query >= length) return;
    const int stride = 3 * hidden, offset = blockIdx.y * dim;
    const float *head = qkv + size_t(begin) * stride + offset;
    const bool vectors = in_vectors(qkv, dim) && in_vectors(y, dim);

    const int c = threadIdx.x % GROUP, r = threadIdx.x / GROUP;
    copy_rows<QUERIES, D>(queries, head, stride, first_query, length, dim, vectors);
    __syncthreads();
    // Scores are taken to base 2, where the device's exponential is one instruction.
    const float scale = 1.4426950408889634f / sqrtf(float(dim));
    for (int i = threadIdx.x; i < QUERIES * D; i += THREADS) {
        const int column = i % D;
        const float b = bias && column < dim ? bias[offset + column] : 0.0f;
        queries[i / D][column] = (queries[i / D][column] + b) * scale;
    }

    float max[ROWS], sum[ROWS], out[ROWS][D / 32][4];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
#pragma unroll
        for (int m = 0; m < D / 32; m++)
            out[i][m][0] = out[i][m][1] = out[i][m][2] = out[i][m][3] = 0.0f;
    }

    for (int first = 0; first < length; first += KEYS) {
        __syncthreads(); // V of the tile before is not needed any more
        copy_rows<KEYS, D>(tile, head + hidden, stride, first, length, dim, vectors);
        __syncthreads();

        float s[ROWS][4] = {};
#pragma unroll 4
        for (int column = 0; column < D; column += 4) {
            float q[ROWS][4], k[4][4];
#pragma unroll
            for (int i = 0; i < ROWS; i++) load4(q[i], &queries[r + i * GROUPS][column]);
#pragma unroll
            for (int j = 0; j < 4; j++) load4(k[j], &tile[c + j * GROUP][column]);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int p = 0; p < 4; p++) s[i][j] = fmaf(q[i][p], k[j][p], s[i][j]);
        }

#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float tile_max = max[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (first + c + j * GROUP >= length) s[i][j] = -INFINITY;
                tile_max = fmaxf(tile_max, s[i][j]);
            }
            tile_max = warp_max<GROUP>(tile_max);
            const float shrink = exp2f(max[i] - tile_max);
            max[i] = tile_max;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float weight = exp2f(s[i][j] - tile_max);
                sum[i] += weight;
                weights[r + i * GROUPS][c + j * GROUP] = weight;
            }
#pragma unroll
            for (int m = 0; m < D / 32; m++)
#pragma unroll
                for (int p = 0; p < 4; p++) out[i][m][p] *= shrink;
        }

        __syncthreads(); // the weights are here, and K is not needed any more
        copy_rows<KEYS, D>(tile, head + 2 * hidden, stride, first, length, dim, vectors);
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < KEYS; key += 4) {
            float w[ROWS][4];
#pragma unroll
            for (int i = 0; i < ROWS; i++) load4(w[i], &weights[r + i * GROUPS][key]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int m = 0; m < D / 32; m++) {
                    float v[4];
                    load4(v, &tile[key + j][c * 4 + m * 32]);
#pragma unroll
                    for (int i = 0; i < ROWS; i++)
#pragma unroll
                        for (int p = 0; p < 4; p++)
                            out[i][m][p] = fmaf(w[i][j], v[p], out[i][m][p]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const float inverse = 1.0f / warp_sum<GROUP>(sum[i]);
        const int query = first_query + r + i * GROUPS;
        if (query >= length) continue;
        float *to = y + size_t(begin + query) * hidden + offset;
#pragma unroll
        for (int m = 0; m < D / 32; m++) {
            const int column = c * 4 + m * 32;
            float result[4];
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const float b =
                    bias && column + p < dim ? bias[2 * hidden + offset + column + p] : 0.0f;
                result[p] = fmaf(out[i][m][p], inverse, b);
            }
            if (vectors) {
                if (column < dim) store_vector(to + column, result);
            } else {
#pragma unroll
                for (int p = 0; p < 4; p++)
                    if (column + p < dim) to[column + p] = result[p];
            }
        }
    }
}

} // namespace attention_f32
} // namespace ferry
