#include "call.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "cpu/arena.h"

namespace jkoflow::test {
namespace {

// Bytes of a heap block from `offset` to its end.
class Buffer {
 public:
  Buffer(size_t alignment, size_t offset, size_t bytes) : offset_(offset) {
    void* block = nullptr;
    if (posix_memalign(&block, alignment, offset + bytes) != 0) throw std::bad_alloc();
    block_.reset(static_cast<char*>(block));
  }
  char* data() const { return block_.get() + offset_; }

 private:
  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  std::unique_ptr<char, Free> block_;
  size_t offset_;
};

// Signalling NaNs: a result that depends on one is NaN.
template <class Real>
Real pattern(Fill fill) {
  switch (fill) {
    case Fill::kZero:
      return 0;
    case Fill::kNaN:
      return std::numeric_limits<Real>::signaling_NaN();
    case Fill::kHuge:
      return std::numeric_limits<Real>::max();
  }
  return 0;
}

template <class Real>
void fill_with(Fill fill, char* data, size_t bytes) {
  const Real value = pattern<Real>(fill);
  for (size_t at = 0; at + sizeof(Real) <= bytes; at += sizeof(Real)) std::memcpy(data + at, &value, sizeof(Real));
}

template <class Real>
class Call {
 public:
  Call(const Case& c, const Tensors<double>& in, const Options& options) : c_(c), in_(in), options_(options) {
    problem.float64 = sizeof(Real) == 8;
    problem.split = c.split;
    problem.batch = c.batch;
    problem.dim = c.dim;
    problem.context_dim = c.context_dim;
    problem.time = c.time;
    problem.divergence = c.divergence;
    problem.hidden_layers = c.layers();
    for (int l = 0; l < c.layers(); ++l) problem.width[l] = c.hidden[l];
    problem.activation = c.activation;
    problem.beta = c.beta;
    problem.t0 = c.t0;
    problem.t1 = c.t1;
    problem.num_steps = c.num_steps;
    problem.tableau = tableau(c.method);
    problem.threads = c.threads;
    problem.x = input("x");
    problem.context = input("context");
    problem.noise = input("noise");
    problem.linear = input("linear");
    problem.residual = c.residual;
    problem.modulation = c.modulation;
    problem.modulation.tensor = input("modulation");
    for (int l = 0; l <= c.layers(); ++l) {
      problem.weight[l] = input("weight" + std::to_string(l));
      problem.bias[l] = input("bias" + std::to_string(l));
    }
  }

  // A tensor of the inputs, or null if there is none (or, as torch does, if it is empty).
  Real* input(const std::string& name) {
    const auto found = in_.find(name);
    if (found == in_.end()) return nullptr;
    Real* data = allocate(name, found->second.size());
    for (size_t i = 0; i < size_of(name, found->second.size()); ++i) set(data, i, found->second[i]);
    inputs_.push_back(name);
    return data;
  }

  Real* output(const std::string& name, size_t count) {
    Real* data = allocate(name, count);
    fill_with<Real>(options_.fill, reinterpret_cast<char*>(data), sizeof(Real) * size_of(name, count));
    outputs_[name] = {data, count};
    return data;
  }

  void want_gradients() {
    const auto gradient = [&](const std::string& name) -> Real* {
      const auto found = in_.find(name);
      return found == in_.end() ? nullptr : output("grad " + name, found->second.size());
    };
    if (options_.x) adjoint.x = gradient("x");
    if (options_.context) adjoint.context = gradient("context");
    if (!options_.parameters) return;
    for (int l = 0; l <= c_.layers(); ++l) {
      adjoint.weight[l] = gradient("weight" + std::to_string(l));
      adjoint.bias[l] = gradient("bias" + std::to_string(l));
    }
    adjoint.linear = gradient("linear");
    adjoint.modulation = gradient("modulation");
  }

  // run(memory) with `bytes` bytes of working memory. What is behind them must stay as it is: the arena lifts the
  // guards of AddressSanitizer there.
  template <class Run>
  void with_memory(size_t bytes, Run&& run) {
    constexpr size_t kBehind = 4096;
    const Buffer memory(64, 0, bytes + kBehind);
    fill_with<Real>(options_.fill, memory.data(), bytes);
    char* behind = memory.data() + (options_.shortened == "memory" ? bytes / 2 : bytes);
    std::memset(behind, 0x5a, kBehind);
    run(memory.data());
#ifdef JKOFLOW_ADDRESS_SANITIZER
    ASAN_UNPOISON_MEMORY_REGION(behind, kBehind);
#endif
    if (std::count(behind, behind + kBehind, 0x5a) != kBehind) {
      throw std::runtime_error("the kernels wrote beyond their memory");
    }
  }

  Tensors<double> results() const {
    for (const std::string& name : inputs_) {
      const std::vector<double>& values = in_.at(name);
      for (size_t i = 0; i < size_of(name, values.size()); ++i) {
        if (get(data_.at(name), i) != values[i]) throw std::runtime_error("the kernels changed " + name);
      }
    }
    Tensors<double> out;
    for (const auto& [name, tensor] : outputs_) {
      std::vector<double>& values = out[name];
      for (size_t i = 0; i < tensor.second; ++i) values.push_back(get(tensor.first, i));
    }
    return out;
  }

  Problem problem;
  Adjoint adjoint;

 private:
  size_t size_of(const std::string& name, size_t count) const { return name == options_.shortened ? count - 1 : count; }

  Real* allocate(const std::string& name, size_t count) {
    if (count == 0) return nullptr;
    // Odd seeds: aligned to the elements only. Even ones: right behind the allocator's guard.
    const size_t offset = name == options_.misaligned ? 1 : c_.seed % 2 == 1 ? sizeof(Real) : 0;
    const auto [at, added] = buffers_.try_emplace(name, 64, offset, sizeof(Real) * size_of(name, count));
    if (!added) throw std::logic_error("a second tensor " + name);
    return data_[name] = reinterpret_cast<Real*>(at->second.data());
  }
  static void set(Real* data, size_t index, double value) {
    const Real rounded = static_cast<Real>(value);
    std::memcpy(reinterpret_cast<char*>(data) + index * sizeof(Real), &rounded, sizeof(Real));
  }
  static double get(const Real* data, size_t index) {
    Real value;
    std::memcpy(&value, reinterpret_cast<const char*>(data) + index * sizeof(Real), sizeof(Real));
    return value;
  }

  const Case& c_;
  const Tensors<double>& in_;
  const Options& options_;
  std::map<std::string, Buffer> buffers_;
  std::map<std::string, Real*> data_;
  std::map<std::string, std::pair<Real*, size_t>> outputs_;
  std::vector<std::string> inputs_;
};

template <class Real>
Tensors<double> forward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                           const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  p.x_end = call.output("x_end", c.batch * c.dim);
  p.logdet = call.output("logdet", c.batch);
  if (options.path) p.path = call.output("path", (c.num_steps + 1) * c.batch * c.dim);
  if (kernels == nullptr) {
    cpu::forward(p);
  } else {
    call.with_memory(kernels->forward_bytes(p), [&](char* memory) { kernels->forward(p, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> backward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                            const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  p.path = call.input("path");
  call.adjoint.x_end = call.input("bar x_end");
  call.adjoint.logdet = call.input("bar logdet");
  call.adjoint.path = call.input("bar path");
  call.want_gradients();
  if (kernels == nullptr) {
    cpu::backward(p, call.adjoint);
  } else {
    call.with_memory(kernels->backward_bytes(p), [&](char* memory) { kernels->backward(p, call.adjoint, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> jko_loss_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, double step_size,
                            const Options& options) {
  Call<Real> call(c, in, options);
  const Buffer terms(alignof(double), 0, 3 * sizeof(double));
  fill_with<double>(options.fill, terms.data(), 3 * sizeof(double));
  JkoLoss loss;
  loss.step_size = step_size;
  loss.terms = reinterpret_cast<double*>(terms.data());
  call.want_gradients();
  if (kernels == nullptr) {
    cpu::jko_loss(call.problem, loss, call.adjoint);
  } else {
    call.with_memory(kernels->jko_loss_bytes(call.problem),
                     [&](char* memory) { kernels->jko_loss(call.problem, loss, call.adjoint, memory); });
  }
  Tensors<double> out = call.results();
  out["terms"].assign(loss.terms, loss.terms + 3);
  return out;
}

}  // namespace

Tensors<double> forward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? forward_as<double>(kernels, c, in, options) : forward_as<float>(kernels, c, in, options);
}

Tensors<double> backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? backward_as<double>(kernels, c, in, options) : backward_as<float>(kernels, c, in, options);
}

Tensors<double> jko_loss(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, double step_size,
                         const Options& options) {
  return c.float64 ? jko_loss_as<double>(kernels, c, in, step_size, options)
                   : jko_loss_as<float>(kernels, c, in, step_size, options);
}

}  // namespace jkoflow::test
