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

// The same by a warp group: 64 x 16 over a depth of 32, the left factor in packed order, the right one an operand; for
// JKOFLOW_ARCHITECTURE 90. `out` counts the wrong elements. A number too fine for TF32 in the last column of the depth
// shows whether its lower bits are ignored.
constexpr int kGroupDepth = 32;
constexpr float kTooFine = 1.0f + 0x1p-11f;
JKOFLOW_HOST_DEVICE float group_a(int row, int k) { return k == kGroupDepth - 1 ? kTooFine : mma_a(row, k); }
JKOFLOW_HOST_DEVICE float group_b(int k, int column) { return k == kGroupDepth - 1 ? kTooFine : mma_b(k, column); }

JKOFLOW_DEVICE void warp_group_layout_kernel(float* out) {
  namespace device = cuda::device;
  constexpr int kRows = 16;  // of the operand
  const int thread = device::thread(), lane = thread & 31, g = lane >> 2, t = lane & 3, row = 16 * (thread >> 5) + g;
  float* operand = device::shared();
  for (int i = thread; i < kRows * kGroupDepth; i += 128) {
    const int column = i / kGroupDepth, k = i % kGroupDepth;
    operand[cuda::operand_index(column, k, kRows)] = group_b(k, column);
  }
  device::publish_operands();
  device::sync_block(cuda::Barrier::kFirstLayer);
  float c[2][4];
  for (int n = 0; n < 2; ++n) {
    for (int j = 0; j < 4; ++j) c[n][j] = mma_c(row + 8 * (j >> 1), 8 * n + 2 * t + (j & 1));
  }
  unsigned a[kGroupDepth / 8][4];
  for (int step = 0; step < kGroupDepth / 8; ++step) {
    for (int i = 0; i < 4; ++i) {
      a[step][i] = device::bits(group_a(row + 8 * (i & 1), 8 * step + 2 * t + (i >> 1)));
    }
  }
  device::begin_products();
  for (int step = 0; step < kGroupDepth / 8; ++step) {
    device::warp_group_tf32(c, a[step], device::operand(operand) + 2 * step);
  }
  device::end_products();
  device::wait_for_products();
  for (int n = 0; n < 2; ++n) {
    for (int j = 0; j < 4; ++j) {
      const int r = row + 8 * (j >> 1), column = 8 * n + 2 * t + (j & 1);
      float sum = mma_c(r, column) + 1.0f;  // what TF32 keeps of the finest product
      for (int k = 0; k + 1 < kGroupDepth; ++k) sum += mma_a(r, k) * mma_b(k, column);
      out[r * kRows + column] = c[n][j] != sum;
    }
  }
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
inline int warp_group_layout_errors() {
  float out[64 * 16] = {}, wrong = 0;
  emulator::launch(1, 128, 4096, [&] { warp_group_layout_kernel(out); });
  for (const float element : out) wrong += element;
  return static_cast<int>(wrong);
}
#endif

}  // namespace jkoflow
