#include "dispatch.h"

#include "interruption.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if defined(JKOFLOW_HAVE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace jkoflow {

#ifdef JKOFLOW_HAVE_AMX
namespace amx {
extern const CpuKernels kKernels;
extern const StagewiseKernels kStagewiseKernels;
}  // namespace amx
#endif
#ifdef JKOFLOW_HAVE_AVX512
namespace avx512 {
extern const CpuKernels kKernels;
extern const StagewiseKernels kStagewiseKernels;
}  // namespace avx512
#endif
#ifdef JKOFLOW_HAVE_AVX2
namespace avx2 {
extern const CpuKernels kKernels;
extern const StagewiseKernels kStagewiseKernels;
}  // namespace avx2
#endif
namespace baseline {
extern const CpuKernels kKernels;
extern const StagewiseKernels kStagewiseKernels;
}  // namespace baseline

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

#if defined(JKOFLOW_HAVE_AMX) && defined(__linux__)
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d & kTile) != 0 && (d & kBf16) != 0;
}

// Linux hands out the registers of AMX to processes that ask for them.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::string find_split_problem() {
#if defined(JKOFLOW_HAVE_AMX) && defined(__linux__)
  if (!has_amx()) return "this processor has no AMX";
  if (std::string(kernels().isa) != "avx512") return std::string("JKOFLOW_ISA=") + kernels().isa + " rules AMX out";
  if (!may_use_amx()) return "the operating system does not let this process use AMX";
  return "";
#else
  return "this build has no kernels for AMX";
#endif
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

// Runs call(kernels, problem), which may be interrupted.
template <class Call>
void run(const Problem& problem, Call&& call) {
  const InterruptibleProblem interruptible(problem);
  call(kernels_for(problem), interruptible.problem());
  interruptible.throw_if_interrupted();
}

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

std::string split_problem() {
  static const std::string problem = find_split_problem();
  return problem;
}

const CpuKernels& kernels_for(const Problem& problem) {
  if (!problem.split) return kernels();
  const std::string reason = split_problem();
  if (!reason.empty()) throw std::runtime_error("split products need AMX: " + reason);
#ifdef JKOFLOW_HAVE_AMX
  return amx::kKernels;
#else
  return kernels();
#endif
}

const StagewiseKernels& stagewise_kernels([[maybe_unused]] const CpuKernels& kernels) {
#ifdef JKOFLOW_HAVE_AMX
  if (&kernels == &amx::kKernels) return amx::kStagewiseKernels;
#endif
#ifdef JKOFLOW_HAVE_AVX512
  if (&kernels == &avx512::kKernels) return avx512::kStagewiseKernels;
#endif
#ifdef JKOFLOW_HAVE_AVX2
  if (&kernels == &avx2::kKernels) return avx2::kStagewiseKernels;
#endif
  return baseline::kStagewiseKernels;
}

void forward(const Problem& problem) {
  run(problem, [](const CpuKernels& k, const Problem& p) { k.forward(p, workspace.at_least(k.forward_bytes(p))); });
}

void backward(const Problem& problem, const Adjoint& adjoint) {
  run(problem,
      [&](const CpuKernels& k, const Problem& p) { k.backward(p, adjoint, workspace.at_least(k.backward_bytes(p))); });
}

void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint) {
  run(problem, [&](const CpuKernels& k, const Problem& p) {
    k.jko_loss(p, loss, adjoint, workspace.at_least(k.jko_loss_bytes(p)));
  });
}

void evaluate(const Problem& problem) {
  run(problem, [](const CpuKernels& k, const Problem& p) { k.evaluate(p, workspace.at_least(k.forward_bytes(p))); });
}

void evaluate_backward(const Problem& problem, const Adjoint& adjoint) {
  run(problem, [&](const CpuKernels& k, const Problem& p) {
    k.evaluate_backward(p, adjoint, workspace.at_least(k.backward_bytes(p)));
  });
}

AdaptiveRun::AdaptiveRun(const Problem& problem, const Adaptive& adaptive) {
  std::vector<StepLog*> logs;
  for (int i = 0; i < problem.threads; ++i) {
    logs_.push_back(std::make_unique<StepLog>(StepRecord::bytes(problem)));
    logs.push_back(logs_.back().get());
  }
  run(problem, [&](const CpuKernels& k, const Problem& p) {
    failure_ = k.adaptive(p, adaptive, logs.data(), workspace.at_least(k.adaptive_bytes(p)));
  });
  for (const StepLog* log : logs) {
    if (log->out_of_memory()) throw std::bad_alloc();
  }
}

int64_t AdaptiveRun::steps() const {
  int64_t count = 0;
  for (const auto& log : logs_) count += log->count();
  return count;
}

void AdaptiveRun::write(char* out) const {
  int64_t offset = 0;
  for (const auto& log : logs_) {
    log->write(out, offset);
    out += log->bytes();
    offset += log->count();
  }
}

void adaptive_backward(const Problem& problem, const Adaptive& adaptive, const Adjoint& adjoint) {
  run(problem, [&](const CpuKernels& k, const Problem& p) {
    k.adaptive_backward(p, adaptive, adjoint, workspace.at_least(k.adaptive_backward_bytes(p, adaptive)));
  });
}

void stagewise(const Problem& problem, const StagewiseStep& step, const Adaptive& adaptive) {
  run(problem, [&](const CpuKernels& kernels, const Problem& p) {
    const StagewiseKernels& k = stagewise_kernels(kernels);
    k.forward(p, step, adaptive, workspace.at_least(k.forward_bytes(p, step)));
  });
}

void stagewise_backward(const Problem& problem, const StagewiseStep& step, const Adjoint& adjoint) {
  run(problem, [&](const CpuKernels& kernels, const Problem& p) {
    const StagewiseKernels& k = stagewise_kernels(kernels);
    k.backward(p, step, adjoint, workspace.at_least(k.backward_bytes(p, step)));
  });
}

}  // namespace cpu
}  // namespace jkoflow
