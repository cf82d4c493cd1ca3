// What the host needs of the CUDA runtime. runtime.cu implements it; so does the emulation, for its tests.
#pragma once

#include <cstddef>

#include "gpu.h"
#include "kernels.h"

namespace jkoflow::cuda::runtime {

// Makes a device current for the lifetime of the object.
class Current {
 public:
  explicit Current(int device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int previous_, device_;
};

// Of the current device. Throw std::runtime_error.
Gpu gpu();
// Thread blocks that a multiprocessor holds at a time.
int blocks_per_multiprocessor(const Kernel& kernel, size_t shared_bytes);

// Starts a kernel on a stream of the current device. blocks > 0.
template <class Parameters>
void start(const KernelOf<Parameters>& kernel, int blocks, size_t shared_bytes, void* stream,
           const Parameters& parameters);

}  // namespace jkoflow::cuda::runtime
