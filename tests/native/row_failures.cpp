#include "row_failures.h"

#include <algorithm>
#include <limits>

#include "call.h"
#include "rows.h"

namespace jkoflow::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

Case rows_of_many_lengths(bool float64) {
  Case c;
  c.float64 = float64;
  c.batch = 151;
  c.method = "bosh3";
  c.rtol = c.atol = 3e-4;
  c.context_dim = 1;
  c.linear = true;
  c.t1 = 2;
  c.output_times = {0.3, 1.9};
  c.seed = 5;
  return c;
}

Tensors<double> inputs(const Case& c) {
  Tensors<double> in = random_inputs(c);
  for (int64_t i = 0; i < c.batch * c.dim; ++i) in["x"][i] *= i / c.dim % 7 == 0 ? 4 : i / c.dim % 3 == 0 ? 2 : 1;
  return in;
}

double attempts_of(const Case& c, const Tensors<double>& values, int64_t row) {
  return (values.at("evaluations")[row] - 2) / (tableau(c.method).stages - 1);
}

// Every row but those that fail is as it is without them; the first of these is told, with the reason.
void expect_failures(const std::string& what, const Case& c, const Tensors<double>& got,
                     const Tensors<double>& expected, const std::vector<bool>& fails, RowFailure::Reason reason) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < c.batch; ++row) rows.push_back(fails[row] ? -1 : row);
  expect_same_rows(what, c, got, expected, rows);
  const auto first = std::find(fails.begin(), fails.end(), true);
  const double row = first == fails.end() ? -1 : static_cast<double>(first - fails.begin());
  ++comparisons;
  if (got.at("failure")[0] != row || got.at("failure")[1] != (row < 0 ? RowFailure::kNone : reason)) {
    fail(what + ": row " + std::to_string(row) + " should fail for reason " + std::to_string(reason) + ", got row " +
         std::to_string(got.at("failure")[0]) + " and " + std::to_string(got.at("failure")[1]));
  }
}

// Numbers that are not finite in x or context, from the start on.
void check_not_finite(const std::string& what, const CpuKernels* kernels, const Case& c) {
  const Tensors<double> in = inputs(c), expected = adaptive(kernels, c, in, {});
  for (const char* name : {"x", "context", "noise"}) {
    if (in.count(name) == 0) continue;
    for (const double value : {kNaN, kInfinity}) {
      if (name == std::string("context") && std::isinf(value)) continue;  // the hidden layers only saturate
      for (const int apart : {1, 3, 50}) {
        Tensors<double> bad = in;
        std::vector<bool> fails(c.batch);
        const int64_t columns = static_cast<int64_t>(in.at(name).size()) / c.batch;
        for (int64_t row = apart == 1 ? 0 : 2; row < c.batch; row += apart) {
          fails[row] = true;
          bad[name][row * columns] = value;
        }
        const Tensors<double> got = adaptive(kernels, c, bad, {});
        const std::string where = what + ", " + name + " of every row " + std::to_string(apart) + " not finite";
        expect_failures(where, c, got, expected, fails, RowFailure::kNotFinite);
        bool stopped = true;
        for (int64_t row = 0; row < c.batch; ++row) {
          stopped = stopped && (!fails[row] || (got.at("evaluations")[row] == 1 && got.at("last_step")[row] == -1));
        }
        ++comparisons;
        if (!stopped) fail(where + ": a row that cannot start should stop after one evaluation");
      }
    }
  }
}

// As many steps as a row needs are enough, and one less is not.
void check_max_steps(const std::string& what, const CpuKernels* kernels, const Case& c) {
  const Tensors<double> in = inputs(c), expected = adaptive(kernels, c, in, {});
  std::vector<double> attempts;
  bool rejected = false;
  for (int64_t row = 0; row < c.batch; ++row) {
    attempts.push_back(attempts_of(c, expected, row));
    rejected = rejected || attempts.back() > static_cast<double>(steps_of(c, expected, row).size());
  }
  std::vector<double> sorted = attempts;
  std::sort(sorted.begin(), sorted.end());
  ++comparisons;
  if (!rejected || sorted[5] >= sorted[c.batch / 2] || sorted[c.batch / 2] >= sorted[c.batch - 5]) {
    fail(what + ": these rows should take different numbers of steps, and some should be rejected");
  }
  const double most = sorted.back();
  for (const double max_steps : {most, most - 1, sorted[c.batch / 2], 1.0, 2147483647.0, 0x1p62}) {
    Case limited = c;
    limited.max_steps = static_cast<int64_t>(max_steps);
    const Tensors<double> got = adaptive(kernels, limited, in, {});
    std::vector<bool> fails;
    for (const double needed : attempts) fails.push_back(needed > max_steps);
    const std::string where = what + ", max_steps " + std::to_string(limited.max_steps);
    expect_failures(where, c, got, expected, fails, RowFailure::kMaxSteps);
    for (int64_t row = 0; row < c.batch; ++row) {
      if (!fails[row]) continue;
      const std::vector<Step> steps = steps_of(c, got, row), whole = steps_of(c, expected, row);
      ++comparisons;
      if (attempts_of(c, got, row) != max_steps || steps.size() >= whole.size() ||
          !std::equal(steps.begin(), steps.end(), whole.begin())) {
        fail(where + ": row " + std::to_string(row) + " should take the steps it takes without a limit, up to there");
      }
    }
  }
}

// Steps that are lost in the digits of t.
void check_underflow(const std::string& what, const CpuKernels* kernels, Case c) {
  c.time = false;
  c.t0 = 1e13;
  c.t1 = c.t0 + 8;
  c.rtol = c.atol = c.float64 ? 1e-11 : 1e-9;
  c.output_times = {c.t0 + 1};
  const Tensors<double> got = adaptive(kernels, c, inputs(c), {});
  expect_failures(what + ", underflow", c, got, got, std::vector<bool>(c.batch, true), RowFailure::kUnderflow);
}

// The gradients of a row are not touched by cotangents or steps of another that are not finite.
void check_gradients_beside(const std::string& what, const CpuKernels* kernels, const Case& c) {
  Tensors<double> recorded = inputs(c);
  for (const auto& [name, values] : adaptive(kernels, c, recorded, {})) recorded[name] = values;
  const Tensors<double> expected = adaptive_backward(kernels, c, recorded, {});
  for (const char* name : {"bar x_end", "bar logdet", "bar x_outputs", "bar logdet_outputs", "record x", "record dt"}) {
    for (const double value : {kNaN, kInfinity}) {
      Tensors<double> bad = recorded;
      std::vector<int64_t> rows;
      for (int64_t row = 0; row < c.batch; ++row) {
        rows.push_back(row % 5 == 3 ? -1 : row);
        if (row % 5 != 3) continue;
        const bool of_step = std::string(name).find("record") == 0;
        const int64_t columns = std::string(name).find("x") != std::string::npos ? c.dim : 1;
        const int64_t place = of_step ? static_cast<int64_t>(recorded.at("last_step")[row]) : row;
        bad[name][place * columns] = value;
      }
      expect_same_rows(what + ", " + name + " of others not finite", c, adaptive_backward(kernels, c, bad, {}),
                       expected, rows);
    }
  }
}

}  // namespace

void check_row_failures(const CpuKernels* kernels) {
  for (const Divergence divergence : {Divergence::kExact, Divergence::kHutchinson}) {
    for (const bool float64 : {false, true}) {
      Case c = rows_of_many_lengths(float64);
      c.divergence = divergence;
      for (const int threads : {1, 4}) {
        c.threads = threads;
        const std::string what = std::string("rows that fail, ") + kernels->isa + " " + c.text();
        check_not_finite(what, kernels, c);
        check_max_steps(what, kernels, c);
        check_underflow(what, kernels, c);
        check_gradients_beside(what, kernels, c);
      }
    }
  }
}

}  // namespace jkoflow::test
