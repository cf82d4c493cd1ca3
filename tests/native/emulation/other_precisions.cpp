// The kernels that an emulation of warp groups leaves out: those of other precisions, which have none.
#include "kernels.h"

namespace jkoflow::cuda {

template <Task T, int H, Precision P>
RunOf<Params> instance(bool) {
  return nullptr;
}

#define JKOFLOW_LEFT_OUT(task, H)                                         \
  template RunOf<Params> instance<Task::task, H, Precision::kFp32>(bool); \
  template RunOf<Params> instance<Task::task, H, Precision::kTf32>(bool);
#define JKOFLOW_LEFT_OUT_OF(task) JKOFLOW_LEFT_OUT(task, 64) JKOFLOW_LEFT_OUT(task, 128) JKOFLOW_LEFT_OUT(task, 256)
JKOFLOW_LEFT_OUT_OF(kForward)
JKOFLOW_LEFT_OUT_OF(kBackward)
JKOFLOW_LEFT_OUT_OF(kAdaptiveForward)
JKOFLOW_LEFT_OUT_OF(kAdaptiveBackward)

}  // namespace jkoflow::cuda
