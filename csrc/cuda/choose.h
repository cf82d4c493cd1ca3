// Which kernel a problem gets, and where a thread block's buffers lie. Plain C++: it reads the problem's sizes, not its
// pointers, and needs neither a GPU nor CUDA.
#pragma once

#include <string>

#include "../problem.h"
#include "gpu.h"
#include "kernels.h"

namespace jkoflow::cuda {

enum class Where { kShared, kScratch, kGradient };  // kGradient: in the thread block's partial gradient itself

// A thread block's buffer, for those who ask where it lies.
struct Buffer {
  const char* name;
  int floats;
  Where where;
};
constexpr int kMaxBuffers = 20 + kMaxSlots;

struct Choice {
  KernelKind kind{};
  Shape shape{};
  bool warp_groups = false;  // see with_warp_groups
  Layout layout{};           // but for its records
  int shared_floats = 0, scratch_floats = 0;
  Buffer buffers[kMaxBuffers] = {};
  int buffer_count = 0;

  int tile() const { return 8 * shape.fragments; }  // samples
  int small_tile() const { return 8 * shape.small; }
  int threads() const { return threads_of(kind.H); }
  size_t shared_bytes() const { return shared_floats * sizeof(float); }
};

// Throws std::runtime_error with what `unsupported` says.
Choice choose(const Problem& problem, Precision precision, Task task, const Gpu& gpu);

// Thread blocks that a multiprocessor holds at a time, by shared memory and by the registers that the kernel is limited
// to: an estimate for plans without a GPU.
int estimated_blocks(const Choice& choice, const Gpu& gpu);

// Empty if the kernels cover the problem, else why not: a phrase that can follow "the CUDA kernels". What it accepts
// runs on every GPU of compute capability 8.0 or newer.
std::string unsupported(const Problem& problem, Precision precision);

}  // namespace jkoflow::cuda
