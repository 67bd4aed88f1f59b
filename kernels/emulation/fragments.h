// Tensor cores, ldmatrix and cp.async on the host: what fragments.cuh has on a device. The lanes of
// a warp meet, the last to come does the work for all in plain loops.

#pragma once

#include "cuda.h"

namespace emulation {

// A lane's part of D += A·B, as PTX's mma.m16n8k16 hands it out.
struct Product {
    float *d;          // [4]: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1
    const unsigned *a; // [4]: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each two columns
    const unsigned *b; // [2]: rows 2t and 2t + 8, each two, of column g
};

template <typename T> inline float number(unsigned word, int half) {
    return float(bits_as<T>(uint16_t(half ? word >> 16 : word)));
}

template <typename T>
EMULATION_UNWATCHED void multiply(unsigned mask, void *const *data, int line) {
    if (mask != 0xffffffff) fail(line, "a matrix product by the lanes %08x alone", mask);
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto part = static_cast<Product *>(data[lane]);
        int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = number<T>(part->a[i], half);
            for (int i = 0; i < 2; i++) b[2 * t + i * 8 + half][g] = number<T>(part->b[i], half);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        auto part = static_cast<Product *>(data[lane]);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            part->d[i] += sum;
        }
    }
}

struct Matrices {
    unsigned *to; // [4]
    const void *row;
};

template <bool transposed>
EMULATION_UNWATCHED void load_matrices(unsigned mask, void *const *data, int line) {
    if (mask != 0xffffffff) fail(line, "matrices loaded by the lanes %08x alone", mask);
    for (int lane = 0; lane < 32; lane++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            unsigned pair[2];
            for (int half = 0; half < 2; half++) {
                int x = lane / 4, y = lane % 4 * 2 + half;
                const void *row = static_cast<Matrices *>(data[8 * matrix + (transposed ? y : x)])->row;
                pair[half] = static_cast<const uint16_t *>(row)[transposed ? x : y];
            }
            static_cast<Matrices *>(data[lane])->to[matrix] = pair[0] | pair[1] << 16;
        }
    }
}

} // namespace emulation

namespace ferry {

template <typename T>
EMULATION_UNWATCHED void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                      int line = __builtin_LINE()) {
    emulation::Product part{d, a, b};
    emulation::collective(0xffffffff, &emulation::multiply<T>, &part, line);
}

template <bool transposed>
EMULATION_UNWATCHED void load_matrices(unsigned (&to)[4], const void *row, int line = __builtin_LINE()) {
    emulation::touch(row, 16, emulation::Access::Read, __builtin_return_address(0));
    emulation::Matrices part{to, row};
    emulation::collective(0xffffffff, &emulation::load_matrices<transposed>, &part, line);
}

EMULATION_UNWATCHED inline void copy_async(void *shared, const void *global, bool there) {
    emulation::copy_later(shared, there ? global : nullptr, 16, __builtin_return_address(0));
}
inline void commit_copies() { emulation::commit_copies(); }
template <int left> inline void wait_for_copies() { emulation::wait_for_copies(left); }

} // namespace ferry
