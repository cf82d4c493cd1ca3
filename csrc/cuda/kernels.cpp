// The table of the kernels that carry samples.
#include "kernels.h"

namespace jkoflow::cuda {
namespace {

template <Task T, int H>
auto with_precision(const KernelKind& kind) {
  switch (kind.precision) {
    case Precision::kFp32:
      return instance<T, H, Precision::kFp32>(kind.tangents);
    case Precision::kTf32x3:
      return instance<T, H, Precision::kTf32x3>(kind.tangents);
    default:
      return instance<T, H, Precision::kTf32>(kind.tangents);
  }
}

template <Task T>
auto with_width(const KernelKind& kind) {
  switch (kind.H) {
    case 64:
      return with_precision<T, 64>(kind);
    case 128:
      return with_precision<T, 128>(kind);
    default:
      return with_precision<T, 256>(kind);
  }
}

}  // namespace

Kernel kernel_of(const KernelKind& kind) {
  const int threads = threads_of(kind.H);
  switch (kind.task) {
    case Task::kForward:
      return {with_width<Task::kForward>(kind), threads, "forward"};
    case Task::kAdaptiveForward:
      return {with_width<Task::kAdaptiveForward>(kind), threads, "adaptive_forward"};
    case Task::kAdaptiveBackward:
      return {with_width<Task::kAdaptiveBackward>(kind), threads, "adaptive_backward"};
    default:
      return {with_width<Task::kBackward>(kind), threads, "backward"};
  }
}

}  // namespace jkoflow::cuda
