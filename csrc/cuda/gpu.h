// What a plan has to know of a GPU.
#pragma once

#include <cstddef>

namespace jkoflow::cuda {

constexpr size_t kLeastShared = 99 * 1024;   // that a thread block may have on every GPU of capability 8.0 or newer
constexpr size_t kGroupShared = 227 * 1024;  // on one that has warp groups
constexpr size_t kReservedShared = 1024;     // that CUDA takes of each thread block's share

// runtime.h measures it. The defaults, for plans without a GPU, are those of an H100 (SXM).
struct Gpu {
  int architecture = 90;  // that the kernels which run here were compiled for, as shapes.h counts
  int multiprocessors = 132;
  size_t shared_per_block = 227 * 1024;  // bytes that a thread block may have, after opting in
  size_t shared_per_multiprocessor = 228 * 1024;
};

}  // namespace jkoflow::cuda
