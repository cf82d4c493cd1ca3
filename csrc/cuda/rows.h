// What the CUDA kernels need of the caller beside problem.h's Adaptive, since they allocate nothing.
#pragma once

#include <cstdint>

namespace jkoflow::cuda {

struct RowBuffers {
  const void* divergence = nullptr;       // (batch,), the linear term's share of each row's divergence, or null
  const double* output_times = nullptr;   // those of Adaptive, in the device's memory
  const int64_t* record_begin = nullptr;  // (batch + 1,), ascending: a row's places among the records; null: none
  char* records = nullptr;                // out; in for the adjoint
  int64_t record_count = 0;               // of the adjoint
  double* outcome = nullptr;              // out: (batch, 4): reason of failure, t, dt, number of accepted steps
};

}  // namespace jkoflow::cuda
