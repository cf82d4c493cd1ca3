// csrc/cuda/runtime.h on the emulator: a device whose size tests can choose.
#include "runtime.h"

#include <stdexcept>

#include "device.h"
#include "emulated_runtime.h"
#include "emulator.h"

namespace jkoflow::cuda::runtime {
namespace {

Gpu emulated{JKOFLOW_ARCHITECTURE, 1, 227 * 1024, 228 * 1024};

}  // namespace

void configure(int multiprocessors, size_t shared_per_block) {
  emulated = {JKOFLOW_ARCHITECTURE, multiprocessors, shared_per_block, shared_per_block + 1024};
}

Current::Current(int device) : previous_(0), device_(device) {
  if (device != 0) throw std::runtime_error("the emulation has one device, 0, not " + std::to_string(device));
}
Current::~Current() = default;

Gpu gpu_of(int) { return emulated; }
Gpu gpu() { return emulated; }

// One: thread blocks run one after the other anyway, and fewer of them have larger shares.
int blocks_per_multiprocessor(const Kernel&, size_t shared_bytes) {
  if (shared_bytes > emulated.shared_per_block) throw std::runtime_error("too much shared memory for a thread block");
  return 1;
}

template <class Parameters>
void start(const KernelOf<Parameters>& kernel, int blocks, size_t shared_bytes, void*, const Parameters& parameters) {
  emulator::launch(blocks, kernel.threads, shared_bytes, [&] { kernel.run(parameters); });
}

template void start(const KernelOf<Params>&, int, size_t, void*, const Params&);
template void start(const KernelOf<PrepareParams>&, int, size_t, void*, const PrepareParams&);
template void start(const KernelOf<ReduceParams>&, int, size_t, void*, const ReduceParams&);
template void start(const KernelOf<FinishParams>&, int, size_t, void*, const FinishParams&);

}  // namespace jkoflow::cuda::runtime
