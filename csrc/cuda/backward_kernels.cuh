// Kernels of the adjoint and the loss of one padded width: tiles, and the table of all precisions.
#pragma once

#include "backward.cuh"
#include "kernels.h"

namespace jkoflow::cuda {

// Fragments of 8 samples in a tile, large and small (see ForwardShape), and blocks on a multiprocessor. Up to H = 128
// half the registers hold gradients.
template <int H, bool kTangents>
struct BackwardShape {
  static constexpr int kFragments = kTangents ? (H == 256 ? 1 : 2) : (H == 256 ? 2 : 4);
  static constexpr int kSmall = kTangents ? kFragments : kFragments > 2 ? 2 : 1;  // tangents have no registers for two
  static constexpr int kBlocks = H == 64 ? 2 : 1;
};

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(2 * H, (BackwardShape<H, kTangents>::kBlocks))
backward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Shape = BackwardShape<H, kTangents>;
  run_backward<H, P, Shape::kFragments, Shape::kSmall, kTangents>(p);
}

template <int H, Precision P, bool kTangents>
Kernel backward_entry() {
  using Shape = BackwardShape<H, kTangents>;
  return {&backward_kernel<H, P, kTangents>,
          2 * H,
          8 * Shape::kFragments,
          8 * Shape::kSmall,
          Backward<H, P, Shape::kFragments, kTangents>::kPanels,
          Shape::kBlocks,
          "backward"};
}

#define JKOFLOW_BACKWARD_KERNELS(H)                                                                                   \
  template <>                                                                                                         \
  Kernel backward_kernel_of<H>(Precision precision, bool tangents) {                                                  \
    switch (precision) {                                                                                              \
      case Precision::kFp32:                                                                                          \
        return tangents ? backward_entry<H, Precision::kFp32, true>() : backward_entry<H, Precision::kFp32, false>(); \
      case Precision::kTf32x3:                                                                                        \
        return tangents ? backward_entry<H, Precision::kTf32x3, true>()                                               \
                        : backward_entry<H, Precision::kTf32x3, false>();                                             \
      default:                                                                                                        \
        return tangents ? backward_entry<H, Precision::kTf32, true>() : backward_entry<H, Precision::kTf32, false>(); \
    }                                                                                                                 \
  }

}  // namespace jkoflow::cuda
