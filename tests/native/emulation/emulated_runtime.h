#pragma once

#include <cstddef>

namespace jkoflow::cuda::runtime {

// Size of the emulated device; shared memory in bytes that a block may have.
void configure(int multiprocessors, size_t shared_per_block);

}  // namespace jkoflow::cuda::runtime
