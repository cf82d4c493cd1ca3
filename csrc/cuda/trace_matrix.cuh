// The weight of all paths from x to x through one unit of the first and one of the last hidden layer.
#pragma once

#include "device.h"
#include "params.h"

namespace jkoflow::cuda {

// sums[j][k] = sum_i W1[a[j], i] W_last[i, o[k]], which is (W1x W_last)^T at (o[k], a[j]). Several at once, since they
// share what they read.
template <int A, int O>
JKOFLOW_DEVICE void path_weights(const Paths& p, const int (&a)[A], const int (&o)[O], float (&sums)[A][O]) {
#pragma unroll
  for (int j = 0; j < A; ++j) {
#pragma unroll
    for (int k = 0; k < O; ++k) sums[j][k] = 0.0f;
  }
#pragma unroll 4
  for (int i = 0; i < p.dim; ++i) {
    float first[A], last[O];
#pragma unroll
    for (int j = 0; j < A; ++j) first[j] = device::load_constant(p.first + a[j] * p.first_stride + i);
#pragma unroll
    for (int k = 0; k < O; ++k) last[k] = device::load_constant(p.last + i * p.last_stride + o[k]);
#pragma unroll
    for (int j = 0; j < A; ++j) {
#pragma unroll
      for (int k = 0; k < O; ++k) sums[j][k] += first[j] * last[k];
    }
  }
}

}  // namespace jkoflow::cuda
