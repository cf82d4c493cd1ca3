// One tensor product against the layout that the kernels count on; csrc/cuda/device.h documents it.
#pragma once

#include "device.h"
#include "layout.h"

namespace jkoflow {

// Small integers: exact in TF32, all products distinct enough that a swapped row, column or register shows.
JKOFLOW_HOST_DEVICE float mma_a(int row, int k) { return static_cast<float>((row * 5 + k * 3) % 31 - 15); }
JKOFLOW_HOST_DEVICE float mma_b(int k, int column) { return static_cast<float>((k * 7 + column * 11) % 29 - 14); }
JKOFLOW_HOST_DEVICE float mma_c(int row, int column) { return static_cast<float>(row * 8 + column); }

// The body of the test kernel: a warp computes (16, 8) = a b + c into out.
JKOFLOW_DEVICE void mma_layout_kernel(float* out) {
  namespace device = cuda::device;
  const int lane = device::thread() & 31, g = lane >> 2, t = lane & 3;
  const unsigned a[4] = {device::bits(mma_a(g, t)), device::bits(mma_a(g + 8, t)), device::bits(mma_a(g, t + 4)),
                         device::bits(mma_a(g + 8, t + 4))};
  float c[4];
  for (int j = 0; j < 4; ++j) c[j] = mma_c(g + 8 * (j >> 1), 2 * t + (j & 1));
  device::mma_tf32(c, a, device::bits(mma_b(t, g)), device::bits(mma_b(t + 4, g)));
  for (int j = 0; j < 4; ++j) out[(g + 8 * (j >> 1)) * 8 + 2 * t + (j & 1)] = c[j];
}

// Elements of out that are not those of a b + c.
inline int wrong_elements(const float* out) {
  int wrong = 0;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = mma_c(row, column);
      for (int k = 0; k < 8; ++k) sum += mma_a(row, k) * mma_b(k, column);
      wrong += out[row * 8 + column] != sum;
    }
  }
  return wrong;
}

#ifdef JKOFLOW_EMULATION
inline int mma_layout_errors() {
  float out[128] = {};
  emulator::launch(1, 32, 0, [&] { mma_layout_kernel(out); });
  return wrong_elements(out);
}
#endif

}  // namespace jkoflow
