// The weight of all paths from x to x through one unit of the first and one of the last hidden layer.
#pragma once

#include "device.h"

namespace jkoflow::cuda {

// sum_i W1[a, i] W_last[i, o]: (W1x W_last)^T at (o, a).
JKOFLOW_DEVICE float path_weight(const float* first, int first_stride, int a, const float* last, int last_stride, int o,
                                 int dim) {
  float sum = 0.0f;
  for (int i = 0; i < dim; ++i) sum += first[a * first_stride + i] * last[i * last_stride + o];
  return sum;
}

}  // namespace jkoflow::cuda
