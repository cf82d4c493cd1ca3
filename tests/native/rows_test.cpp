// The kernels in which every row has its own time: single evaluations and adaptive steps of every instruction set
// against the oracle, each other and themselves.
//   rows_test [PART PARTS]    every PARTS-th case from PART on
#include <cstdlib>
#include <numeric>
#include <tuple>

#include "call.h"
#include "row_failures.h"
#include "rows.h"
#include "slopes.h"

namespace jkoflow::test {
namespace {

// What is asked of the kernels: values, and gradients that read the values' records.
struct Task {
  using Kernel = Tensors<double> (*)(const CpuKernels*, const Case&, const Tensors<double>&, const Options&);
  std::string name;
  Kernel values, gradients;
  Tensors<double> (*oracle)(const Case&, const Tensors<double>&);
  Answer answer;
  std::vector<std::string> cotangents;
};

const Task kEvaluation = {"evaluation", evaluate, evaluate_backward, evaluate, evaluate, {"bar x_end", "bar logdet"}};
const Task kSteps = {"steps",      adaptive,     adaptive_backward,
                     follow_steps, follow_steps, {"bar x_end", "bar logdet", "bar x_outputs", "bar logdet_outputs"}};

std::vector<std::string> differentiable_by(const Task& task, const Case& c) {
  std::vector<std::string> names = differentiable(c);
  if (&task == &kEvaluation && c.time) names.emplace_back("times");
  return names;
}

// Rows differ in how many steps they take.
Tensors<double> inputs(const Case& c) {
  Tensors<double> in = random_inputs(c);
  for (int64_t i = 0; i < c.batch * c.dim; ++i) in["x"][i] *= i / c.dim % 7 == 0 ? 4 : i / c.dim % 3 == 0 ? 2 : 1;
  return in;
}

// The steps of every row, whatever decided about them, go from t0 to t1, are accurate and pass the outputs in order.
void check_steps(const std::string& what, const Case& c, const Tensors<double>& values, const Tensors<double>& in,
                 const Tensors<double>& oracle) {
  const int stages = tableau(c.method).stages;
  const auto expect = [&](bool holds, int64_t row, const char* problem) {
    ++comparisons;
    if (!holds) fail(what + ": row " + std::to_string(row) + ": " + problem);
  };
  expect(values.at("failure")[0] == -1, -1, "fails");
  for (int64_t row = 0; row < c.batch; ++row) {
    const std::vector<Step> steps = steps_of(c, values, row);
    const double evaluations = values.at("evaluations")[row];
    const double attempts = (evaluations - 2) / (stages - 1);
    expect(attempts == std::floor(attempts) && attempts >= static_cast<double>(steps.size()), row,
           "evaluations are not those of whole attempts");
    expect(oracle.at("errors")[row] <= (c.float64 ? 1 + 1e-6 : 1.01), row, "an error is above its tolerance");
    double t = c.t0;
    int output = 0;
    bool chained = !steps.empty(), passed = true;
    for (const Step& step : steps) {
      const bool last = &step == &steps.back();
      chained = chained && step.t == t && (last ? step.dt == c.t1 - t : (c.t1 - t - step.dt) * (c.t1 - c.t0) > 0);
      t += step.dt;
      passed = passed && step.first_output == output;
      while (output < c.outputs() && (c.output_times[output] - step.t) / step.dt <= 1) ++output;
      passed = passed && step.end_output == output;
    }
    expect(chained, row, "the steps do not go from t0 to t1");
    expect(passed && output == c.outputs(), row, "the steps do not pass the outputs in their order");
    for (int k = 0; chained && k < c.dim; ++k) {
      expect(steps[0].x[k] == in.at("x")[row * c.dim + k], row, "the first step does not start from x");
    }
  }
}

struct Results {
  Tensors<double> values, recorded, gradients;  // recorded: the inputs with the values
};

Results run(const Task& task, const CpuKernels* kernels, const Case& c, const Tensors<double>& in) {
  Results results;
  results.values = task.values(kernels, c, in, {});
  results.recorded = results.values;
  results.recorded.insert(in.begin(), in.end());
  results.gradients = task.gradients(kernels, c, results.recorded, {});
  return results;
}

// Rows alone, in the opposite order and on other numbers of threads are the same, bit for bit.
void check_company(const std::string& what, const Task& task, const CpuKernels* kernels, const Case& c,
                   const Tensors<double>& in, const Results& results) {
  std::vector<std::vector<int64_t>> choices = {{c.batch / 2}, {}};
  for (int64_t row = c.batch; row-- > 0;) choices.back().push_back(row);
  for (const std::vector<int64_t>& rows : choices) {
    Case part = c;
    part.batch = static_cast<int64_t>(rows.size());
    const Results got = run(task, kernels, part, select_rows(c, in, rows));
    const std::string where = what + (part.batch == 1 ? ", a row alone" : ", rows turned round");
    expect_same_rows(where, c, got.values, results.values, rows);
    expect_same_rows(where, c, got.gradients, results.gradients, rows);
    if (part.batch < c.batch) continue;
    for (const auto& [name, gradient] : got.gradients) {
      if (name.find("weight") == std::string::npos && name.find("bias") == std::string::npos) continue;
      expect_close(where, {{name, gradient}}, results.gradients, tolerance(c));
    }
  }
  std::vector<int64_t> all(c.batch);
  std::iota(all.begin(), all.end(), 0);
  for (const int threads : {1, 7}) {
    Case other = c;
    other.threads = threads;
    const std::string where = what + ", " + std::to_string(threads) + " threads";
    const Results got = run(task, kernels, other, in);
    expect_same_rows(where, c, got.values, results.values, all);
    expect_same_rows(where, c, got.gradients, results.gradients, all);
    expect_close(where, got.gradients, results.gradients, tolerance(c));
    expect_close(where + ", records of others", task.gradients(kernels, c, got.recorded, {}), results.gradients, 0);
  }
}

// What is not wanted, or null, changes nothing else; nor does what the memory holds.
void check_variants(const std::string& what, const Task& task, const CpuKernels* kernels, const Case& c,
                    const Tensors<double>& in, const Results& results) {
  for (const Fill fill : {Fill::kZero, Fill::kHuge}) {
    expect_close(what + ", other memory, values", task.values(kernels, c, in, {fill}), results.values, 0);
    expect_close(what + ", other memory, gradients", task.gradients(kernels, c, results.recorded, {fill}),
                 results.gradients, 0);
  }
  Options less;
  less.records = less.evaluations = false;
  expect_close(what + ", no records", task.values(kernels, c, in, less), results.values, 0);
  for (int wanted = 0; wanted < 3; ++wanted) {
    const Options only = {Fill::kNaN, true, wanted == 0, wanted == 1, wanted == 2};
    expect_close(what + ", gradient of one", task.gradients(kernels, c, results.recorded, only), results.gradients, 0);
  }
  for (const std::string& bar : task.cotangents) {
    Tensors<double> zero = results.recorded, none = results.recorded;
    if (none.erase(bar) == 0) continue;
    zero[bar].assign(zero[bar].size(), 0.0);
    expect_close(what + ", no " + bar, task.gradients(kernels, c, none, {}), task.gradients(kernels, c, zero, {}), 0);
  }
  if (c.outputs() == 0 || &task == &kEvaluation) return;
  Case without = c;
  without.output_times.clear();
  Tensors<double> ends = adaptive(kernels, without, in, {}), expected = results.values;
  for (const char* name : {"record first_output", "record end_output"}) expected[name].assign(expected[name].size(), 0);
  for (const char* name : {"x_outputs", "logdet_outputs"}) expected[name].clear();
  expect_close(what + ", no outputs", ends, expected, 0);
  Tensors<double> recorded = results.recorded;
  for (const auto& [name, values] : ends) recorded[name] = values;
  Tensors<double> no_cotangents = results.recorded;
  no_cotangents.erase("bar x_outputs");
  no_cotangents.erase("bar logdet_outputs");
  expect_close(what + ", gradients without outputs", adaptive_backward(kernels, without, recorded, {}),
               adaptive_backward(kernels, c, no_cotangents, {}), tolerance(c));
}

void check_task(const Task& task, const Case& c) {
  const Tensors<double> in = inputs(c);
  const CpuKernels* best = cpu::available_kernels().front();
  const Results first = run(task, best, c, in);
  const Slopes expected = slopes(task.answer, c, first.recorded, differentiable_by(task, c));
  const auto check = [&](const CpuKernels* kernels, const Case& as) {
    const std::string what = task.name + ", " + kernels->isa + " " + as.text();
    const Results results = run(task, kernels, as, in);
    const Tensors<double> oracle = task.oracle(as, results.recorded);
    Tensors<double> values;
    for (const char* name : {"x_end", "logdet", "x_outputs", "logdet_outputs"}) {
      if (results.values.count(name) != 0) values[name] = results.values.at(name);
    }
    expect_close(what, values, oracle, tolerance(c));
    if (&task == &kSteps) check_steps(what, c, results.values, in, oracle);
    const Tensors<double> gradients = task.gradients(kernels, as, first.recorded, {});
    check_gradients(what, c, expected, gradients);
    expect_close(what + ", gradients of the first", gradients, first.gradients, tolerance(c));
    if (!c.float64) {
      Case exact = c;
      exact.float64 = true;
      expect_close(what + ", gradients in float64", gradients, task.gradients(best, exact, first.recorded, {}),
                   tolerance(c));
    }
    if (c.batch == 0) {
      for (const auto& [name, gradient] : results.gradients) {
        for (const double value : gradient) {
          if (value != 0) fail(what + ": " + name + " of no rows should be 0");
        }
      }
      return;
    }
    check_variants(what, task, kernels, as, in, results);
    check_company(what, task, kernels, as, in, results);
  };
  for (const CpuKernels* kernels : cpu::available_kernels()) check(kernels, c);
  if (!c.float64 && cpu::split_problem().empty()) {
    Case split = c;
    split.split = true;
    Problem wish;
    wish.split = true;
    check(&cpu::kernels_for(wish), split);
  }
}

// Times within the interval: two that are the same, and two next to its ends.
std::vector<double> times_between(double t0, double t1) {
  const double middle = t0 + 0.4 * (t1 - t0);
  return {std::nextafter(t0, t1), t0 + 0.1 * (t1 - t0), middle, middle, t0 + 0.41 * (t1 - t0), std::nextafter(t1, t0)};
}

// Each list goes through the sizes or options that break kernels, beside others that change with them.
std::vector<Case> cases() {
  std::vector<Case> list;
  const std::vector<std::vector<int>> shapes = {{20, 12}, {1}, {33}, {16, 16}, {7, 30}, {1, 1}, {9, 17, 5}, {17, 1}};
  const std::vector<std::vector<int>> layers = {{19}, {7, 18}, {16, 8, 20}, {5, 18, 3, 7}};
  const ActivationKind activations[] = {ActivationKind::kTanh, ActivationKind::kSoftplus, ActivationKind::kSilu,
                                        ActivationKind::kElu,  ActivationKind::kSelu,     ActivationKind::kGelu};
  const Divergence divergences[] = {Divergence::kExact, Divergence::kHutchinson, Divergence::kNone};
  const std::pair<double, double> intervals[] = {{0, 1}, {1, -0.5}, {0.25, 2}};
  const auto vary = [&](Case c) {
    const size_t n = list.size();
    c.seed = n + 1;
    c.float64 = (n ^ n >> 2 ^ n >> 4) % 2 == 0;
    c.activation = activations[n % 6];
    c.beta = c.activation == ActivationKind::kSoftplus ? 3 : 1;
    c.time = n % 4 != 1;
    c.context_dim = n % 5 == 2 ? 3 : n % 5 == 4 ? 1 : 0;
    c.linear = n % 3 != 1;
    std::tie(c.t0, c.t1) = intervals[n % 7 % 3];
    if (n % 8 < 5) c.output_times = times_between(c.t0, c.t1);
    list.push_back(c);
  };
  size_t turn = 0;
  for (const int64_t batch : {0, 1, 15, 16, 17, 47, 48, 49, 100, 1003}) {
    for (const Divergence divergence : {divergences[turn % 2], divergences[(turn + 1) % 3]}) {
      Case c;
      c.batch = batch;
      c.divergence = divergence;
      c.method = embedded_methods()[turn % 3];
      c.hidden = batch > 100 ? std::vector<int>{6, 5} : shapes[turn % shapes.size()];
      if (batch > 100) c.method = "bosh3", c.rtol = c.atol = 0.03;
      ++turn;
      vary(c);
    }
  }
  for (const int dim : {1, 2, 3, 8, 9, 17, 64}) {
    Case c;
    c.dim = dim;
    c.batch = 19;
    c.method = embedded_methods()[dim > 9 ? 0 : turn % 3];
    if (dim > 9) c.rtol = c.atol = 0.03;
    c.hidden = shapes[turn++ % shapes.size()];
    vary(c);
  }
  for (const std::string& method : embedded_methods()) {
    for (const Divergence divergence : divergences) {
      for (const std::vector<int>& hidden : layers) {
        Case c;
        c.method = method;
        c.divergence = divergence;
        c.batch = 21;
        c.hidden = hidden;
        vary(c);
      }
    }
  }
  for (int inputs = 0; inputs < 8; ++inputs) {
    Case c;
    c.batch = 34;
    c.method = "bosh3";
    c.hidden = shapes[turn++ % shapes.size()];
    c.threads = 3;
    vary(c);
    list.back().time = (inputs & 1) != 0;
    list.back().linear = (inputs & 2) != 0;
    list.back().context_dim = (inputs & 4) != 0 ? 2 : 0;
  }
  for (int n = 0; n < 8; ++n) {  // scaled and shifted by time and context, and residual
    Case c;
    c.batch = 34 + 15 * (n % 2);
    c.method = "bosh3";
    c.hidden = n % 3 == 0 ? std::vector<int>{9} : n % 3 == 1 ? std::vector<int>{9, 9} : std::vector<int>{7, 7, 7};
    c.divergence = divergences[n % 2];
    vary(c);
    Case& as = list.back();
    as.time = true;
    const unsigned all = (2u << c.hidden.size()) - 1;
    as.residual = n % 4 != 2;
    as.modulation.present = true;
    as.modulation.gate = n % 2 == 0 ? GateKind::kSigmoid : GateKind::kAffine;
    as.modulation.time = n % 5 != 1;
    as.modulation.frequencies = n % 3 == 2 || n % 5 == 1 ? 3 : 0;
    as.modulation.gated = n % 4 == 3 ? all / 2 : all;
    as.modulation.shifted = n % 4 == 1 ? 0 : all;
  }
  for (const bool float64 : {false, true}) {  // nowhere to go
    Case c;
    c.float64 = float64;
    c.method = "dopri5";
    c.t0 = c.t1 = 0.4;
    c.seed = list.size();
    list.push_back(c);
  }
  return list;
}

}  // namespace
}  // namespace jkoflow::test

int main(int count, char** arguments) {
  using namespace jkoflow::test;
  const size_t part = count == 3 ? std::strtoul(arguments[1], nullptr, 10) : 0;
  const size_t parts = count == 3 ? std::strtoul(arguments[2], nullptr, 10) : 1;
  const std::vector<Case> list = cases();
  for (size_t i = part; i < list.size(); i += parts) {
    check_task(kEvaluation, list[i]);
    check_task(kSteps, list[i]);
  }
  for (const jkoflow::CpuKernels* kernels : jkoflow::cpu::available_kernels()) {
    if (part == parts - 1) check_row_failures(kernels);
    std::printf("%s ", kernels->isa);
  }
  std::printf("%s", jkoflow::cpu::split_problem().empty() ? "amx " : "");
  std::printf("rows: %zu cases, %ld comparisons, %d failures\n", (list.size() - part + parts - 1) / parts, comparisons,
              failures);
  return failures == 0 ? 0 : 1;
}
