// The kernels that carry samples. A source that sources.cmake writes instantiates those of one task, padded width and
// precision.
#pragma once

#include "adaptive/adjoint.cuh"
#include "adaptive/forward.cuh"
#include "kernels.h"

namespace jkoflow::cuda {

// The shape that the architecture at hand is compiled with.
template <Task T, int H, Precision P, bool kTangents>
struct ShapeHere {
  static constexpr Shape kShape = shape_of(JKOFLOW_ARCHITECTURE, T, H, P, kTangents);
  static constexpr int kFragments = kShape.fragments, kSmall = kShape.small, kBlocks = kShape.blocks;
};

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(threads_of(H), (ShapeHere<Task::kForward, H, P, kTangents>::kBlocks))
forward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Here = ShapeHere<Task::kForward, H, P, kTangents>;
  run_forward<H, P, Here::kFragments, Here::kSmall, kTangents>(p);
}

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(threads_of(H), (ShapeHere<Task::kBackward, H, P, kTangents>::kBlocks))
backward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Here = ShapeHere<Task::kBackward, H, P, kTangents>;
  run_backward<H, P, Here::kFragments, Here::kSmall, kTangents>(p);
}

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(threads_of(H), (ShapeHere<Task::kAdaptiveForward, H, P, kTangents>::kBlocks))
adaptive_forward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Here = ShapeHere<Task::kAdaptiveForward, H, P, kTangents>;
  AdaptiveForward<H, P, Here::kFragments, kTangents>(p).run();
}

template <int H, Precision P, bool kTangents>
JKOFLOW_KERNEL(threads_of(H), (ShapeHere<Task::kAdaptiveBackward, H, P, kTangents>::kBlocks))
adaptive_backward_kernel(JKOFLOW_KERNEL_PARAMS(Params) p) {
  using Here = ShapeHere<Task::kAdaptiveBackward, H, P, kTangents>;
  run_adaptive_adjoint<H, P, Here::kFragments, kTangents>(p);
}

template <Task T, int H, Precision P>
RunOf<Params> instance(bool tangents) {
  if constexpr (T == Task::kForward) {
    return tangents ? &forward_kernel<H, P, true> : &forward_kernel<H, P, false>;
  } else if constexpr (T == Task::kAdaptiveForward) {
    return tangents ? &adaptive_forward_kernel<H, P, true> : &adaptive_forward_kernel<H, P, false>;
  } else if constexpr (T == Task::kAdaptiveBackward) {
    return tangents ? &adaptive_backward_kernel<H, P, true> : &adaptive_backward_kernel<H, P, false>;
  } else {
    return tangents ? &backward_kernel<H, P, true> : &backward_kernel<H, P, false>;
  }
}

}  // namespace jkoflow::cuda
