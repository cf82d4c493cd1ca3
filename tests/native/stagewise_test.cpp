// Steps whose stages have networks of their own, of every instruction set: against single evaluations of the stages'
// networks, which rows_test compares with the oracle, and against themselves on other memory and threads.
//   stagewise_test [PART PARTS]    every PARTS-th case from PART on
#include <cstdlib>
#include <tuple>
#include <utility>

#include "call.h"
#include "check.h"
#include "slopes.h"

namespace jkoflow::test {
namespace {

using Values = std::vector<double>;

bool is_parameter(const std::string& name) { return name.rfind("weight", 0) == 0 || name.rfind("bias", 0) == 0; }

// The inputs of a case with networks for all stages, one after the other.
Tensors<double> stacked_inputs(const Case& c, int stages) {
  Tensors<double> in = random_inputs(c);
  for (int s = 1; s < stages; ++s) {
    Case other = c;
    other.seed = c.seed * 100 + s;
    for (const auto& [name, values] : random_inputs(other)) {
      if (is_parameter(name)) in[name].insert(in[name].end(), values.begin(), values.end());
    }
  }
  const auto give = [&](const char* name, int64_t count, double scale) {
    in[name] = normal(c.seed * 31 + in.size(), static_cast<size_t>(count), scale);
  };
  give("x_rest", c.batch * c.dim, 1e-9);
  give("start logdet", c.batch, 1);
  give("logdet_rest", c.batch, 1e-9);
  give("bar velocity", stages * c.batch * c.dim, 1);
  give("bar divergence", stages * c.batch, 1);
  return in;
}

// What the network of a stage reads at x.
Tensors<double> of_stage(const Tensors<double>& in, int stages, int stage, const Values& x) {
  Tensors<double> own;
  for (const auto& [name, values] : in) {
    if (name == "context" || name == "noise") own[name] = values;
    if (!is_parameter(name)) continue;
    const size_t count = values.size() / stages;
    own[name].assign(values.begin() + stage * count, values.begin() + (stage + 1) * count);
  }
  own["x"] = x;
  return own;
}

void add(Values& sum, double factor, const double* values) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += factor * values[i];
}

// The step by single evaluations, in float64.
struct Composed {
  Tensors<double> values;
  std::vector<Values> inputs;  // x of the stages
};
Composed compose(const CpuKernels* kernels, Case c, Tensors<double> in, int stages, bool with_rests) {
  c.float64 = true;
  const Tableau t = tableau(c.method);
  const double dt = c.t1 - c.t0;
  const size_t rows = c.batch * c.dim;
  for (const char* name : {"x_rest", "logdet_rest"}) {  // the adjoint reads none
    for (double& rest : in.at(name)) rest *= with_rests ? 1 : 0;
  }
  Composed out;
  Values velocity, divergence;
  for (int s = 0; s < stages; ++s) {
    Values x = in.at("x");
    for (int k = 0; k < s; ++k) add(x, dt * t.a[s][k], &velocity[k * rows]);
    if (s > 0 && s == stages - 1 && t.b[s] == 0) add(x, 1, in.at("x_rest").data());  // at the end of the step
    const Tensors<double> found = evaluate(kernels, c, of_stage(in, stages, s, x), {});
    velocity.insert(velocity.end(), found.at("x_end").begin(), found.at("x_end").end());
    divergence.insert(divergence.end(), found.at("logdet").begin(), found.at("logdet").end());
    out.inputs.push_back(x);
  }
  Values end = in.at("x"), logdet = in.at("start logdet");
  add(end, 1, in.at("x_rest").data());
  add(logdet, 1, in.at("logdet_rest").data());
  for (int s = 0; s < stages; ++s) {
    add(end, dt * t.b[s], &velocity[s * rows]);
    add(logdet, dt * t.b[s], &divergence[s * c.batch]);
  }
  out.values = {{"x_end", end}, {"logdet", logdet}, {"velocity", velocity}, {"divergence", divergence}};
  if (t.b[stages - 1] != 0) return out;
  const Adaptive a = embedded(c.method);
  const int has_logdet = c.divergence == Divergence::kNone ? 0 : 1;
  Values errors;
  for (int64_t row = 0; row < c.batch; ++row) {
    double sum = 0;
    const auto add_square = [&](double before, double after, const Values& slopes, size_t at, size_t spacing) {
      double error = 0;
      for (int s = 0; s < stages; ++s) error += dt * a.error[s] * slopes[s * spacing + at];
      const double ratio = error / (c.atol + c.rtol * std::fmax(std::fabs(before), std::fabs(after)));
      sum += ratio * ratio;
    };
    for (size_t at = row * c.dim; at < static_cast<size_t>((row + 1) * c.dim); ++at) {
      add_square(in.at("x")[at], end[at], velocity, at, rows);
    }
    if (has_logdet == 1) add_square(in.at("start logdet")[row], logdet[row], divergence, row, c.batch);
    errors.push_back(sum / (c.dim + has_logdet));
  }
  out.values["errors"] = errors;
  return out;
}

Tensors<double> compose_back(const CpuKernels* kernels, Case c, const Tensors<double>& in, int stages) {
  const std::vector<Values> inputs = compose(kernels, c, in, stages, false).inputs;
  c.float64 = true;
  const Tableau t = tableau(c.method);
  const double dt = c.t1 - c.t0;
  const size_t rows = c.batch * c.dim;
  Tensors<double> out = {{"grad x", in.at("bar x_end")}};
  std::vector<Values> input_bars(stages);
  for (int s = stages - 1; s >= 0; --s) {
    const double* extra = &in.at("bar velocity")[s * rows];
    Values velocity_bar(extra, extra + rows);
    add(velocity_bar, dt * t.b[s], in.at("bar x_end").data());
    for (int k = s + 1; k < stages; ++k) add(velocity_bar, dt * t.a[k][s], input_bars[k].data());
    extra = &in.at("bar divergence")[s * c.batch];
    Values divergence_bar(extra, extra + c.batch);
    add(divergence_bar, dt * t.b[s], in.at("bar logdet").data());
    Tensors<double> own = of_stage(in, stages, s, inputs[s]);
    own["bar x_end"] = velocity_bar;
    own["bar logdet"] = divergence_bar;
    for (const auto& [name, gradient] : evaluate_backward(kernels, c, own, {})) {
      Values& whole = out[name];
      if (name == "grad x") input_bars[s] = gradient;
      if (name == "grad x" || name == "grad context") {
        whole.resize(gradient.size());
        add(whole, 1, gradient.data());
      } else {
        whole.insert(whole.begin(), gradient.begin(), gradient.end());
      }
    }
  }
  return out;
}

void check(const CpuKernels* kernels, const Case& c, bool last_left_out) {
  const int all = tableau(c.method).stages, stages = all - (last_left_out ? 1 : 0);
  const std::string what = std::string(kernels->isa) + " stages " + std::to_string(stages) + " of " + c.text();
  Tensors<double> in = stacked_inputs(c, all);
  const Composed expected = compose(kernels, c, in, all, true);
  const Tensors<double> values = stagewise(kernels, c, in, {all, false}, {});
  Tensors<double> compared = values;
  for (const char* rest : {"x_end_rest", "logdet_end_rest"}) compared.erase(rest);
  expect_close(what, compared, expected.values, tolerance(c));

  Tensors<double> known = in;
  known["start velocity"].assign(values.at("velocity").begin(), values.at("velocity").begin() + c.batch * c.dim);
  known["start divergence"].assign(values.at("divergence").begin(), values.at("divergence").begin() + c.batch);
  expect_close(what + ", start known", stagewise(kernels, c, known, {all, true}, {}), values, 0);

  in = stacked_inputs(c, stages);
  const Tensors<double> gradients = stagewise_backward(kernels, c, in, {stages, false}, {});
  expect_close(what + ", gradients", gradients, compose_back(kernels, c, in, stages), 10 * tolerance(c));

  for (const Fill fill : {Fill::kZero, Fill::kHuge}) {
    expect_close(what + ", other memory", stagewise(kernels, c, known, {all, true}, {fill}), values, 0);
    expect_close(what + ", other memory", stagewise_backward(kernels, c, in, {stages, false}, {fill}), gradients, 0);
  }
  for (int wanted = 0; wanted < 3; ++wanted) {
    Options only = {Fill::kNaN, true, true, wanted == 1, wanted == 2};
    expect_close(what + ", gradient of one", stagewise_backward(kernels, c, in, {stages, false}, only), gradients, 0);
  }
  for (const int threads : {1, 7}) {
    Case other = c;
    other.threads = threads;
    const std::string where = what + ", " + std::to_string(threads) + " threads";
    expect_close(where, stagewise(kernels, other, known, {all, true}, {}), values, 0);
    const Tensors<double> got = stagewise_backward(kernels, other, in, {stages, false}, {});
    expect_close(where, got, gradients, tolerance(c));
    expect_close(where, {{"grad x", got.at("grad x")}}, gradients, 0);
  }
}

std::vector<Case> cases() {
  std::vector<Case> list;
  const std::vector<std::vector<int>> shapes = {{20, 12},   {33},     {7, 18},   {1},
                                                {9, 17, 5}, {16, 16}, {7, 7, 7}, {5, 8, 3, 6}};
  const Divergence divergences[] = {Divergence::kExact, Divergence::kHutchinson, Divergence::kNone};
  const char* names[] = {"rk4", "dopri5", "bosh3", "euler", "dense"};
  for (const int64_t batch : {2, 1, 15, 16, 17, 48, 49, 100}) {
    for (const Divergence divergence : divergences) {
      const size_t n = list.size();
      Case c;
      c.batch = batch;
      c.divergence = divergence;
      c.method = names[n % 5];
      c.hidden = shapes[(n + n / 8) % shapes.size()];
      c.dim = n % 7 == 3 ? 9 : 1 + static_cast<int>(n % 3);
      c.activation = static_cast<ActivationKind>(n % 6);
      c.context_dim = n % 4 == 1 ? 2 : 0;
      c.float64 = n % 3 != 1;
      c.residual = c.hidden.size() > 1 && c.hidden.front() == c.hidden.back() && n % 2 == 0;
      c.time = false;
      std::tie(c.t0, c.t1) = n % 2 == 0 ? std::pair(0.0, 0.3) : std::pair(0.0, -0.2);
      c.seed = n + 1;
      list.push_back(c);
    }
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
  for (const jkoflow::CpuKernels* kernels : jkoflow::cpu::available_kernels()) {
    for (size_t i = part; i < list.size(); i += parts) {
      check(kernels, list[i], false);
      if (tableau(list[i].method).b[tableau(list[i].method).stages - 1] == 0) check(kernels, list[i], true);
    }
    std::printf("%s ", kernels->isa);
  }
  std::printf("stagewise: %zu cases, %ld comparisons, %d failures\n", (list.size() - part + parts - 1) / parts,
              comparisons, failures);
  return failures == 0 ? 0 : 1;
}
