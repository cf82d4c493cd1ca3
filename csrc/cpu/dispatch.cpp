#include "dispatch.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

namespace jkoflow {

#ifdef JKOFLOW_HAVE_AVX512
namespace avx512 {
extern const CpuKernels kKernels;
}
#endif
#ifdef JKOFLOW_HAVE_AVX2
namespace avx2 {
extern const CpuKernels kKernels;
}
#endif
namespace baseline {
extern const CpuKernels kKernels;
}

namespace cpu {

std::vector<const CpuKernels*> available_kernels() {
  std::vector<const CpuKernels*> list;
#ifdef JKOFLOW_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    list.push_back(&avx512::kKernels);
  }
#endif
#ifdef JKOFLOW_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    list.push_back(&avx2::kKernels);
  }
#endif
  list.push_back(&baseline::kKernels);
  return list;
}

namespace {

const CpuKernels& choose() {
  const auto list = available_kernels();
  const char* wanted = std::getenv("JKOFLOW_ISA");
  if (wanted == nullptr || *wanted == '\0') return *list.front();
  std::string names;
  for (const CpuKernels* kernels : list) {
    if (std::string(kernels->isa) == wanted) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  throw std::runtime_error("JKOFLOW_ISA must be one of " + names + " on this machine, got '" + wanted + "'");
}

// Memory that a thread keeps between calls: fresh large blocks would page-fault on every call.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

  char* at_least(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<char*>(std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return memory_;
  }

 private:
  static constexpr size_t kPage = 4096;
  char* memory_ = nullptr;
  size_t size_ = 0;
};

thread_local Workspace workspace;

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const CpuKernels* kernels : available_kernels()) names.emplace_back(kernels->isa);
  return names;
}

const CpuKernels& kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

void forward(const Problem& problem) {
  kernels().forward(problem, workspace.at_least(kernels().forward_bytes(problem)));
}

void backward(const Problem& problem, const Adjoint& adjoint) {
  kernels().backward(problem, adjoint, workspace.at_least(kernels().backward_bytes(problem)));
}

void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint) {
  kernels().jko_loss(problem, loss, adjoint, workspace.at_least(kernels().jko_loss_bytes(problem)));
}

}  // namespace cpu
}  // namespace jkoflow
