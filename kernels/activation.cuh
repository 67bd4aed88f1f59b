// The activations of src/ops/activation.rs, numbered as in its enum, in f32.

#pragma once

#include "common.cuh"

namespace ferry {

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

} // namespace ferry
