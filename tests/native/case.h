// One integration to test: its sizes and options, and seeded tensors for everything that it reads.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "problem.h"

namespace jkoflow::test {

// Row-major values by name: x, context, noise, weight0, bias0, ..., linear, modulation; the cotangents "bar x_end",
// "bar logdet" and "bar path"; the results x_end, logdet, path and terms; the gradients "grad x", "grad weight0", ...
// Where every row has its own time: "times"; x_outputs, logdet_outputs and their cotangents; evaluations, last_step and
// the records "record t", "record dt", "record previous", "record first_output", "record end_output" and "record x".
template <class Scalar>
using Tensors = std::map<std::string, std::vector<Scalar>>;

struct Case {
  bool float64 = true;
  bool split = false;
  int64_t batch = 5;
  int dim = 3;
  int context_dim = 0;
  bool time = true;
  bool linear = false;
  std::vector<int> hidden = {20, 12};
  Modulation modulation;
  bool residual = false;
  ActivationKind activation = ActivationKind::kTanh;
  double beta = 1.0;
  Divergence divergence = Divergence::kExact;
  std::string method = "rk4";
  double t0 = 0.0, t1 = 1.0;
  int num_steps = 2;
  double rtol = 1e-3, atol = 1e-3;  // of adaptive steps
  int64_t max_steps = 1000;
  std::vector<double> output_times = {};
  int threads = 2;
  uint64_t seed = 0;

  int input_columns() const { return modulation.present ? dim : dim + (time ? 1 : 0) + context_dim; }
  int modulation_columns() const { return modulation.columns(context_dim); }
  int rows(int layer) const { return layer < layers() ? hidden[layer] : dim; }
  int64_t modulation_size() const;
  int layers() const { return static_cast<int>(hidden.size()); }
  int outputs() const { return static_cast<int>(output_times.size()); }
  std::string text() const;  // for messages
};

// Names of methods, and their numbers. "dense" is no method that anyone uses: none of its numbers is zero or a repeat.
const std::vector<std::string>& methods();
Tableau tableau(const std::string& method);

// Those with an error estimate, for adaptive steps; tableau() knows them, too. Of a method: order, error and dense.
const std::vector<std::string>& embedded_methods();
Adaptive embedded(const std::string& method);

// Every tensor that the case reads, cotangents included. Values are floats, so that both precisions see the same.
Tensors<double> random_inputs(const Case& c);

// The tensors that have gradients.
std::vector<std::string> differentiable(const Case& c);

// Numbers with a standard normal distribution.
std::vector<double> normal(uint64_t seed, size_t count, double scale);

}  // namespace jkoflow::test
