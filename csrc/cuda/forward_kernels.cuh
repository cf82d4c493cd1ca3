// Forward kernels of one padded width: tiles, and the table of all precisions.
#pragma once

#include "forward.cuh"
#include "kernels.h"

namespace jkoflow::cuda {

// Fragments of 8 samples in a tile, and blocks on a multiprocessor: what 128 registers and 99 KB of shared memory
// allow. Small tiles are for small batches, whose samples then spread over more multiprocessors, and for what is left
// of a block's share; below two fragments a warp would wait for each product.
template <int H, bool kTangents>
struct ForwardShape {
  static constexpr int kFragments = kTangents ? (H == 256 ? 2 : 4) : (H == 256 ? 2 : 5);
  static constexpr int kSmall = kFragments > 2 ? 2 : 1;
  static constexpr int kBlocks = H == 64 ? 4 : H == 128 ? 2 : 1;
};

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(2 * H, (ForwardShape<H, kTangents>::kBlocks))
forward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Shape = ForwardShape<H, kTangents>;
  run_forward<H, P, Shape::kFragments, Shape::kSmall, kTangents>(p);
}

template <int H, Precision P, bool kTangents>
Kernel forward_entry() {
  using Shape = ForwardShape<H, kTangents>;
  return {&forward_kernel<H, P, kTangents>,
          2 * H,
          8 * Shape::kFragments,
          8 * Shape::kSmall,
          Forward<H, P, Shape::kFragments, kTangents>::kPanels,
          Shape::kBlocks,
          "forward"};
}

#define JKOFLOW_FORWARD_KERNELS(H)                                                                                  \
  template <>                                                                                                       \
  Kernel forward_kernel_of<H>(Precision precision, bool tangents) {                                                 \
    switch (precision) {                                                                                            \
      case Precision::kFp32:                                                                                        \
        return tangents ? forward_entry<H, Precision::kFp32, true>() : forward_entry<H, Precision::kFp32, false>(); \
      case Precision::kTf32x3:                                                                                      \
        return tangents ? forward_entry<H, Precision::kTf32x3, true>()                                              \
                        : forward_entry<H, Precision::kTf32x3, false>();                                            \
      default:                                                                                                      \
        return tangents ? forward_entry<H, Precision::kTf32, true>() : forward_entry<H, Precision::kTf32, false>(); \
    }                                                                                                               \
  }

}  // namespace jkoflow::cuda
