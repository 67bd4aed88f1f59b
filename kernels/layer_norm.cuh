// Layer normalisation of one row by one warp, the tail of every fused kernel that ends in it.
//
//   μ = Σx / n,  σ² = Σ(x − μ)² / n,  y = (x − μ) / √(σ² + ε) · γ + β
//
// Ba, Kiros, Hinton 2016 (arXiv:1607.06450). Two passes, as src/ops/layer_norm.rs: the one-pass
// formula E[x²] − μ² loses all digits when the mean is large against the spread. The passes cost no
// memory traffic: a row of up to 1024 values lies in the registers of its warp, 32 in each lane.
// A longer row, or one that does not begin and end at 16 bytes, is read again for each pass, from
// L1 or L2.
//
// Sums are in f32 and in one order that depends on `hidden` alone: a row's result is the same
// whatever it travels with.

#pragma once

#include "common.cuh"

namespace ferry {

// Gain γ, offset β (each [hidden], f32) and ε.
struct NormWeights {
    const float *weight;
    const float *bias;
    float epsilon;
};

// Values of a row in each lane at most.
constexpr int LANE_VALUES = 32;

// May `NormWeights` be read along with vectors of a row?
__device__ __forceinline__ bool in_vectors(NormWeights norm, int hidden) {
    return in_vectors(norm.weight, hidden) && in_vectors(norm.bias, hidden);
}

// y ← LayerNorm(row), by all lanes of a warp. `row.load(column, values)` gives VECTOR<T> values of
// the row from a column that is a multiple of it, `row.at(column)` one; `y` may be where the row is
// read from. `vectors`: may `row` and `y` be accessed by vectors?
template <typename T, typename Row>
__device__ __forceinline__ void normalize_row(T *y, const Row &row, int hidden, NormWeights norm,
                                              bool vectors) {
    constexpr int V = VECTOR<T>;
    constexpr int STEPS = LANE_VALUES / V;
    const int lane = threadIdx.x % WARP;
    const float scale = 1.0f / float(hidden);

    if (vectors && hidden <= WARP * LANE_VALUES) {
        float x[STEPS][V];
        float sum = 0;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int column = (step * WARP + lane) * V;
            if (column < hidden) {
                row.load(column, x[step]);
#pragma unroll
                for (int i = 0; i < V; i++) sum += x[step][i];
            }
        }
        const float mean = warp_sum(sum) * scale;
        float squares = 0;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if ((step * WARP + lane) * V < hidden) {
#pragma unroll
                for (int i = 0; i < V; i++) squares += (x[step][i] - mean) * (x[step][i] - mean);
            }
        }
        const float inverse = rsqrtf(warp_sum(squares) * scale + norm.epsilon);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int column = (step * WARP + lane) * V;
            if (column < hidden) {
                float weight[V], bias[V];
                load_floats(weight, norm.weight + column);
                load_floats(bias, norm.bias + column);
#pragma unroll
                for (int i = 0; i < V; i++)
                    x[step][i] = fmaf((x[step][i] - mean) * inverse, weight[i], bias[i]);
                store_vector(y + column, x[step]);
            }
        }
        return;
    }

    float sum = 0;
    for (int column = lane; column < hidden; column += WARP) sum += row.at(column);
    const float mean = warp_sum(sum) * scale;
    float squares = 0;
    for (int column = lane; column < hidden; column += WARP) {
        const float centred = row.at(column) - mean;
        squares += centred * centred;
    }
    const float inverse = rsqrtf(warp_sum(squares) * scale + norm.epsilon);
    for (int column = lane; column < hidden; column += WARP)
        y[column] = from_float<T>(
            fmaf((row.at(column) - mean) * inverse, norm.weight[column], norm.bias[column]));
}

} // namespace ferry
