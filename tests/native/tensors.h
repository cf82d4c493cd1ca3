// The tensors of one call by name: each lies in a heap block of exactly its size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "call.h"
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
  template <class Element = Real>
  Element* input(const std::string& name) {
    const auto found = in_.find(name);
    return found == in_.end() ? nullptr : input_of<Element>(name, found->second);
  }
  template <class Element>
  Element* input_of(const std::string& name, const std::vector<double>& values) {
    Element* data = allocate<Element>(name, values.size());
    for (size_t i = 0; i < size_of(name, values.size()); ++i) set(data, i, values[i]);
    inputs_.push_back([this, name, data, values] {
      for (size_t i = 0; i < size_of(name, values.size()); ++i) {
        const double now = get(data, i);
        if (now != values[i] && !(std::isnan(now) && std::isnan(values[i]))) {
          throw std::runtime_error("the kernels changed " + name);
        }
      }
    });
    return data;
  }

  template <class Element = Real>
  Element* output(const std::string& name, size_t count) {
    Element* data = allocate<Element>(name, count);
    fill_with<Real>(options_.fill, reinterpret_cast<char*>(data), sizeof(Element) * size_of(name, count));
    outputs_[name] = [this, name, data, count] {
      std::vector<double> values;
      for (size_t i = 0; i < size_of(name, count); ++i) values.push_back(get(data, i));
      return values;
    };
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
    for (const auto& expect_unchanged : inputs_) expect_unchanged();
    Tensors<double> out;
    for (const auto& [name, values] : outputs_) out[name] = values();
    return out;
  }

  // One evaluation, every row at its own time.
  Problem& as_evaluation() {
    problem.row_times = true;
    problem.tableau = tableau("euler");
    problem.times = input("times");
    return problem;
  }

  // Adaptive steps, to the output times.
  Adaptive control() {
    problem.row_times = true;
    Adaptive a = embedded(c_.method);
    a.rtol = c_.rtol;
    a.atol = c_.atol;
    a.max_steps = c_.max_steps;
    a.outputs = c_.outputs();
    a.output_times = input_of<double>("output_times", c_.output_times);
    return a;
  }

  // The bytes of the records among the inputs.
  const char* records() {
    const auto found = in_.find("record t");
    if (found == in_.end()) return nullptr;
    const size_t count = found->second.size(), bytes = StepRecord::bytes(problem), total = bytes * count;
    char* data = reinterpret_cast<char*>(allocate<double>("records", total / sizeof(double)));
    std::vector<char> whole(total);
    for (size_t i = 0; i < count; ++i) {
      const auto member = [&](const char* name) { return in_.at(std::string("record ") + name)[i]; };
      const StepRecord record{member("t"), member("dt"), static_cast<int64_t>(member("previous")),
                              static_cast<int32_t>(member("first_output")), static_cast<int32_t>(member("end_output"))};
      std::memcpy(&whole[i * bytes], &record, sizeof record);
      Real* x = reinterpret_cast<Real*>(&whole[i * bytes + sizeof record]);
      for (int k = 0; k < c_.dim; ++k) set(x, k, in_.at("record x")[i * c_.dim + k]);
    }
    if (total > 0) std::memcpy(data, whole.data(), sizeof(double) * size_of("records", total / sizeof(double)));
    return data;
  }
  void give_records(const std::vector<char>& whole, Tensors<double>& out) const {
    const size_t bytes = StepRecord::bytes(problem);
    for (const char* name : {"t", "dt", "previous", "first_output", "end_output", "x"}) {
      out[std::string("record ") + name] = {};
    }
    for (size_t at = 0; at < whole.size(); at += bytes) {
      StepRecord record;
      std::memcpy(&record, &whole[at], sizeof record);
      out["record t"].push_back(record.t);
      out["record dt"].push_back(record.dt);
      out["record previous"].push_back(static_cast<double>(record.previous));
      out["record first_output"].push_back(record.first_output);
      out["record end_output"].push_back(record.end_output);
      const Real* x = reinterpret_cast<const Real*>(&whole[at + sizeof record]);
      for (int k = 0; k < c_.dim; ++k) out["record x"].push_back(get(x, k));
    }
  }

  Problem problem;
  Adjoint adjoint;

 private:
  size_t size_of(const std::string& name, size_t count) const { return name == options_.shortened ? count - 1 : count; }

  template <class Element>
  Element* allocate(const std::string& name, size_t count) {
    if (count == 0) return nullptr;
    // Odd seeds: aligned to the elements only. Even ones: right behind the allocator's guard.
    const size_t offset = name == options_.misaligned ? 1 : c_.seed % 2 == 1 ? sizeof(Element) : 0;
    const auto [at, added] = buffers_.try_emplace(name, 64, offset, sizeof(Element) * size_of(name, count));
    if (!added) throw std::logic_error("a second tensor " + name);
    return reinterpret_cast<Element*>(at->second.data());
  }
  template <class Element>
  static void set(Element* data, size_t index, double value) {
    const Element rounded = static_cast<Element>(value);
    std::memcpy(reinterpret_cast<char*>(data) + index * sizeof(Element), &rounded, sizeof(Element));
  }
  template <class Element>
  static double get(const Element* data, size_t index) {
    Element value;
    std::memcpy(&value, reinterpret_cast<const char*>(data) + index * sizeof(Element), sizeof(Element));
    return static_cast<double>(value);
  }

  const Case& c_;
  const Tensors<double>& in_;
  const Options& options_;
  std::map<std::string, Buffer> buffers_;
  std::vector<std::function<void()>> inputs_;                            // each looks whether it is as it was
  std::map<std::string, std::function<std::vector<double>()>> outputs_;  // their values
};

}  // namespace
}  // namespace jkoflow::test
