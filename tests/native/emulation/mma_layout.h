// One tensor product against the layout that the kernels count on; csrc/cuda/device.h documents it.
#pragma once

#include "device.h"

namespace jkoflow {

// Small integers: exact in TF32, all products distinct enough that a swapped row, column or register shows.
inline int mma_factor_a(int row, int k) { return (row * 5 + k * 3) % 31 - 15; }
inline int mma_factor_b(int k, int column) { return (k * 7 + column * 11) % 29 - 14; }
inline int mma_addend(int row, int column) { return row * 8 + column; }

// The body of the test kernel: a warp computes (16, 8) = a b + c into out.
JKOFLOW_DEVICE void mma_layout_kernel(float* out) {
  const int lane = cuda::device::thread() & 31, g = lane >> 2, t = lane & 3;
  const auto a = [&](int row, int k) { return cuda::device::bits(static_cast<float>((row * 5 + k * 3) % 31 - 15)); };
  const auto b = [&](int k, int column) { return cuda::device::bits(static_cast<float>((k * 7 + column * 11) % 29 - 14)); };
  const unsigned factors[4] = {a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4)};
  float c[4];
  for (int j = 0; j < 4; ++j) c[j] = static_cast<float>((g + 8 * (j >> 1)) * 8 + 2 * t + (j & 1));
  cuda::device::mma_tf32(c, factors, b(t, g), b(t + 4, g));
  for (int j = 0; j < 4; ++j) out[(g + 8 * (j >> 1)) * 8 + 2 * t + (j & 1)] = c[j];
}

// Elements of out that are not those of a b + c.
inline int wrong_elements(const float* out) {
  int wrong = 0;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int sum = mma_addend(row, column);
      for (int k = 0; k < 8; ++k) sum += mma_factor_a(row, k) * mma_factor_b(k, column);
      wrong += out[row * 8 + column] != static_cast<float>(sum);
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
