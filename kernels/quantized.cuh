// The blocks of a GGML file as a lane of quantized.cu takes them: 32 inputs of one output.
//
// The layouts are those of ggml's `ggml-common.h` (`block_q4_0`, ...), as src/ops/quantized/blocks.rs
// tells them, and not changed at load: numbers are little-endian, a row is a sequence of blocks, and
// blocks begin at multiples of 2 bytes at least. Each format has
//   BLOCK, BYTES     inputs and bytes of a block
//   OFFSET           o of w = d*s*(c - o) - d_min*m
//   take             the codes of a unit, four to a word, with its scales

#pragma once

#include "common.cuh"

namespace ferry {
namespace quantized {

constexpr int UNIT = 32;
constexpr int SUPER = 256;

// What one unit of a weight is. Where scales are per 32 inputs both are the same.
struct Unit {
    int codes[8];
    // Of the block.
    float d;
    // Of its first and second 16 inputs, integers.
    int scales[2];
    // What meets the activations' sum: subtracted for K formats, by 16 inputs; added for others.
    float d_min;
    int minima[2];
};

__device__ __forceinline__ float half_at(const unsigned char *at) {
    return __half2float(*reinterpret_cast<const __half *>(at));
}
// Four bytes from a multiple of 2.
__device__ __forceinline__ int word_of_halves(const unsigned char *at) {
    const unsigned short *halves = reinterpret_cast<const unsigned short *>(at);
    return static_cast<int>(halves[0] | static_cast<unsigned>(halves[1]) << 16);
}
__device__ __forceinline__ int word(const unsigned char *at) {
    return *reinterpret_cast<const int *>(at);
}
// Eight words from a multiple of 16 bytes.
__device__ __forceinline__ void words8(int (&to)[8], const unsigned char *at) {
    const int4 low = reinterpret_cast<const int4 *>(at)[0];
    const int4 high = reinterpret_cast<const int4 *>(at)[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
// Four bits to the lowest ones of four bytes.
__device__ __forceinline__ int spread(int bits) { return (bits & 0xf) * 0x00204081 & 0x01010101; }

__device__ __forceinline__ Unit whole(float d, float d_min = 0.0f) {
    Unit unit;
    unit.d = d;
    unit.d_min = d_min;
    unit.scales[0] = unit.scales[1] = 1;
    unit.minima[0] = unit.minima[1] = 1;
    return unit;
}

// 4-bit codes of 32 inputs: the lower halves of 16 bytes, then the upper.
template <typename Word>
__device__ __forceinline__ void halves(Unit &unit, const unsigned char *at, Word word_at) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int bytes = word_at(at + 4 * i);
        unit.codes[i] = bytes & 0x0f0f0f0f;
        unit.codes[4 + i] = bytes >> 4 & 0x0f0f0f0f;
    }
}
__device__ __forceinline__ void with_fifth_bits(Unit &unit, int bits) {
#pragma unroll
    for (int i = 0; i < 8; i++) unit.codes[i] |= spread(bits >> 4 * i) << 4;
}

struct Q4_0 {
    static constexpr int BLOCK = 32, BYTES = 18, OFFSET = 8;
    static constexpr bool MINIMA = false;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int) {
        Unit unit = whole(half_at(block));
        halves(unit, block + 2, word_of_halves);
        return unit;
    }
};
struct Q4_1 {
    static constexpr int BLOCK = 32, BYTES = 20, OFFSET = 0;
    static constexpr bool MINIMA = true;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int) {
        Unit unit = whole(half_at(block), half_at(block + 2));
        halves(unit, block + 4, word);
        return unit;
    }
};
struct Q5_0 {
    static constexpr int BLOCK = 32, BYTES = 22, OFFSET = 16;
    static constexpr bool MINIMA = false;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int) {
        Unit unit = whole(half_at(block));
        halves(unit, block + 6, word_of_halves);
        with_fifth_bits(unit, word_of_halves(block + 2));
        return unit;
    }
};
struct Q5_1 {
    static constexpr int BLOCK = 32, BYTES = 24, OFFSET = 0;
    static constexpr bool MINIMA = true;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int) {
        Unit unit = whole(half_at(block), half_at(block + 2));
        halves(unit, block + 8, word);
        with_fifth_bits(unit, word(block + 4));
        return unit;
    }
};
struct Q8_0 {
    static constexpr int BLOCK = 32, BYTES = 34, OFFSET = 0;
    static constexpr bool MINIMA = false;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int) {
        Unit unit = whole(half_at(block));
#pragma unroll
        for (int i = 0; i < 8; i++) unit.codes[i] = word_of_halves(block + 2 + 4 * i);
        return unit;
    }
};

// 16 bytes of scales (lower half) and minima (upper) of 16 inputs each, 64 of codes, d, d_min.
struct Q2K {
    static constexpr int BLOCK = 256, BYTES = 84, OFFSET = 0;
    static constexpr bool MINIMA = true;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int place) {
        Unit unit;
        unit.d = half_at(block + 80);
        unit.d_min = half_at(block + 82);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int both = block[2 * place + i];
            unit.scales[i] = both & 0xf;
            unit.minima[i] = both >> 4;
        }
        const unsigned char *codes = block + 16 + place / 4 * 32;
#pragma unroll
        for (int i = 0; i < 8; i++)
            unit.codes[i] = word(codes + 4 * i) >> 2 * (place % 4) & 0x03030303;
        return unit;
    }
};

// 32 bytes of third bits, 64 of codes, 12 of scales of 16 inputs with an offset of 32, d.
struct Q3K {
    static constexpr int BLOCK = 256, BYTES = 110, OFFSET = 4;
    static constexpr bool MINIMA = false;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int place) {
        Unit unit = whole(half_at(block + 108));
        const unsigned char *packed = block + 96;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = 2 * place + i;
            const int low = packed[at % 8] >> 4 * (at / 8) & 0xf;
            const int high = packed[8 + at % 4] >> 2 * (at / 4) & 3;
            unit.scales[i] = (low | high << 4) - 32;
        }
        const unsigned char *codes = block + 32 + place / 4 * 32;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int third = word_of_halves(block + 4 * i) >> place & 0x01010101;
            const int lower = word_of_halves(codes + 4 * i) >> 2 * (place % 4) & 0x03030303;
            unit.codes[i] = lower | third << 2;
        }
        return unit;
    }
};

// The 6-bit scales and minima of Q4_K and Q5_K, of 32 inputs each: four and four in the lower bits of
// eight bytes; of the other four and four, the lower halves in the last four bytes and the upper
// bits in those that the first eight leave free.
__device__ __forceinline__ void scales_and_minima(Unit &unit, const unsigned char *packed,
                                                  int place) {
    int scale, minimum;
    if (place < 4) {
        scale = packed[place] & 63;
        minimum = packed[place + 4] & 63;
    } else {
        const int low = packed[place + 4];
        scale = (low & 0xf) | packed[place - 4] >> 6 << 4;
        minimum = low >> 4 | packed[place] >> 6 << 4;
    }
    unit.scales[0] = unit.scales[1] = scale;
    unit.minima[0] = unit.minima[1] = minimum;
}

// d, d_min, 12 bytes of scales and minima, 128 of codes: 32 bytes hold 64 inputs, the lower halves
// first.
struct Q4K {
    static constexpr int BLOCK = 256, BYTES = 144, OFFSET = 0;
    static constexpr bool MINIMA = true;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int place) {
        Unit unit;
        unit.d = half_at(block);
        unit.d_min = half_at(block + 2);
        scales_and_minima(unit, block + 4, place);
        words8(unit.codes, block + 16 + place / 2 * 32);
#pragma unroll
        for (int i = 0; i < 8; i++) unit.codes[i] = unit.codes[i] >> 4 * (place % 2) & 0x0f0f0f0f;
        return unit;
    }
};

// As Q4_K, with 32 bytes of fifth bits before the codes.
struct Q5K {
    static constexpr int BLOCK = 256, BYTES = 176, OFFSET = 0;
    static constexpr bool MINIMA = true;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int place) {
        Unit unit;
        unit.d = half_at(block);
        unit.d_min = half_at(block + 2);
        scales_and_minima(unit, block + 4, place);
        words8(unit.codes, block + 48 + place / 2 * 32);
        int fifth[8];
        words8(fifth, block + 16);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            unit.codes[i] = (unit.codes[i] >> 4 * (place % 2) & 0x0f0f0f0f) |
                            (fifth[i] >> place & 0x01010101) << 4;
        }
        return unit;
    }
};

// 128 bytes of lower halves, 64 of upper bits, 16 signed scales of 16 inputs, d.
struct Q6K {
    static constexpr int BLOCK = 256, BYTES = 210, OFFSET = 32;
    static constexpr bool MINIMA = false;
    static __device__ __forceinline__ Unit take(const unsigned char *block, int place) {
        Unit unit = whole(half_at(block + 208));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unit.scales[i] = static_cast<signed char>(block[192 + 2 * place + i]);
        }
        // In 128 inputs, the lower halves of 64 bytes come first.
        const int part = place % 4;
        const unsigned char *lower = block + place / 4 * 64 + part % 2 * 32;
        const unsigned char *upper = block + 128 + place / 4 * 32;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            unit.codes[i] = (word_of_halves(lower + 4 * i) >> 4 * (part / 2) & 0x0f0f0f0f) |
                            (word_of_halves(upper + 4 * i) >> 2 * part & 0x03030303) << 4;
        }
        return unit;
    }
};

} // namespace quantized
} // namespace ferry
