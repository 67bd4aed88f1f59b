// What machine.cpp tells watch.cpp of the thread that runs, and the other way round.

#pragma once

#include "machine.h"

namespace emulation {

struct Current {
    unsigned thread;  // in its block
    uint32_t block;   // counts over all launches, from 1
    uint32_t launch;  // `block` of the launch's first
    uint32_t epoch;   // barriers that the block has passed
    bool acquired;    // the block has a fence or an atomic behind it
};

extern Current current;
// `__syncwarp`s that each thread of the block has passed.
extern uint32_t warp_epochs[1024];

bool on_a_stack(const void *address);

// Memory that kernels may touch, and how large what lies in it is.
void watch_region(const void *start, size_t bytes, size_t element, const char *name, bool shared);
// The shared arrays of the launch before are no more.
void forget_shared();

} // namespace emulation
