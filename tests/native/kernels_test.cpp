// Values and gradients of every instruction set against the oracle, each other and themselves.
//   kernels_test [PART PARTS]    every PARTS-th case from PART on
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "call.h"
#include "slopes.h"

namespace jkoflow::test {
namespace {

Tensors<double> without(Tensors<double> tensors, const std::string& name) {
  tensors.erase(name);
  return tensors;
}

// The oracle's value of the JKO objective's terms, from the end of the integration.
std::vector<double> jko_terms(const Case& c, const Tensors<double>& in, const Tensors<double>& out, double step_size) {
  std::vector<double> terms(3);
  for (int64_t i = 0; i < c.batch; ++i) {
    for (int64_t k = i * c.dim; k < (i + 1) * c.dim; ++k) {
      const double y = out.at("x_end")[k], moved = y - in.at("x")[k];
      terms[0] += 0.5 * y * y / c.batch;
      terms[2] += 0.5 / step_size * moved * moved / c.batch;
    }
    terms[1] -= out.at("logdet")[i] / c.batch;
  }
  return terms;
}

// The cotangents of the objective at the end, and what the penalty adds to the gradient of x by itself.
Tensors<double> jko_cotangents(const Case& c, const Tensors<double>& in, const Tensors<double>& out, double step_size,
                               std::vector<double>& penalty) {
  Tensors<double> bars;
  penalty.clear();
  for (int64_t k = 0; k < c.batch * c.dim; ++k) {
    const double y = out.at("x_end")[k], pull = (y - in.at("x")[k]) / step_size / c.batch;
    bars["bar x_end"].push_back(y / c.batch + pull);
    penalty.push_back(-pull);
  }
  bars["bar logdet"].assign(c.batch, -1.0 / c.batch);
  return bars;
}

struct Results {
  Tensors<double> forward, backward, loss;
};

// What the oracle says of a case: values and, in float64, the slope along a random direction of each tensor.
struct Oracle {
  Tensors<double> values;
  Slopes slopes;
};

Oracle ask_oracle(const Case& c, const Tensors<double>& in) {
  return {integrate(c, in), slopes(integrate, c, in, differentiable(c))};
}

// What is not wanted, or null, changes nothing else; nor does what the memory holds or how many threads there are.
void check_variants(const std::string& what, const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                    const Tensors<double>& with_path, double step_size, const Results& results) {
  for (const Fill fill : {Fill::kZero, Fill::kHuge}) {
    const std::string where = what + ", other memory, ";
    expect_close(where + "forward", forward(kernels, c, in, {fill}), results.forward, 0);
    expect_close(where + "backward", backward(kernels, c, with_path, {fill}), results.backward, 0);
    if (c.batch > 0) expect_close(where + "loss", jko_loss(kernels, c, in, step_size, {fill}), results.loss, 0);
  }
  expect_close(what + ", no path", forward(kernels, c, in, {Fill::kNaN, false}), results.forward, 0);
  for (int wanted = 0; wanted < 3; ++wanted) {
    const Options only = {Fill::kNaN, true, wanted == 0, wanted == 1, wanted == 2};
    expect_close(what + ", backward of one", backward(kernels, c, with_path, only), results.backward, 0);
    if (c.batch > 0) {
      expect_close(what + ", loss of one", jko_loss(kernels, c, in, step_size, only), results.loss, 0);
    }
  }
  for (const char* bar : {"bar x_end", "bar logdet", "bar path"}) {
    if (c.batch == 0) break;
    Tensors<double> zero = with_path;
    zero[bar].assign(zero[bar].size(), 0.0);
    expect_close(what + ", no " + bar, backward(kernels, c, without(with_path, bar), {}),
                 backward(kernels, c, zero, {}), 0);
  }
  for (const int threads : {1, 5, 64}) {
    Case other = c;
    other.threads = threads;
    const std::string where = what + ", " + std::to_string(threads) + " threads, ";
    expect_close(where + "forward", forward(kernels, other, in, {}), results.forward, 0);
    const Tensors<double> gradients = backward(kernels, other, with_path, {});
    expect_close(where + "backward", gradients, results.backward, tolerance(c));
    if (c.batch == 0) continue;
    expect_close(where + "grad x", {{"grad x", gradients.at("grad x")}}, results.backward, 0);
    expect_close(where + "loss", jko_loss(kernels, other, in, step_size, {}), results.loss, tolerance(c));
  }
}

Results check_kernels(const std::string& what, const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                      const Oracle& oracle) {
  Results results;
  const double step_size = c.seed % 3 == 0 ? INFINITY : 0.4;
  results.forward = forward(kernels, c, in, {});
  expect_close(what + ", forward", results.forward, oracle.values, tolerance(c));
  if (c.batch > 0) {
    const std::vector<double>& path = results.forward["path"];
    const std::vector<double> ends[] = {{path.begin(), path.begin() + c.batch * c.dim},
                                        {path.end() - c.batch * c.dim, path.end()}};
    expect_close(what + ", start of path", {{"x", ends[0]}}, in, 0);
    expect_close(what + ", end of path", {{"x_end", ends[1]}}, results.forward, 0);
  }

  Tensors<double> with_path = in;
  with_path["path"] = results.forward["path"];
  results.backward = backward(kernels, c, with_path, {});
  check_gradients(what, c, oracle.slopes, results.backward);

  if (c.batch > 0) {
    results.loss = jko_loss(kernels, c, in, step_size, {});
    expect_close(what + ", loss", {{"terms", results.loss["terms"]}},
                 {{"terms", jko_terms(c, in, oracle.values, step_size)}}, tolerance(c));
    std::vector<double> penalty;
    Tensors<double> two_calls = in;
    two_calls.erase("bar path");
    two_calls["path"] = results.forward["path"];
    for (const auto& [name, bars] : jko_cotangents(c, in, results.forward, step_size, penalty)) two_calls[name] = bars;
    // the cotangents are rounded to the precision of the case when they become inputs, so compare in double only there
    for (const char* name : {"bar x_end", "bar logdet"}) {
      for (double& bar : two_calls[name]) bar = c.float64 ? bar : static_cast<float>(bar);
    }
    Tensors<double> expected = backward(kernels, c, two_calls, {});
    for (size_t i = 0; i < penalty.size(); ++i) expected["grad x"][i] += penalty[i];
    expect_close(what + ", gradients of the loss", without(results.loss, "terms"), expected, tolerance(c));
  } else {
    const Tensors<double> loss = jko_loss(kernels, c, in, step_size, {});
    for (const double term : loss.at("terms")) {
      if (!std::isnan(term)) fail(what + ": a mean over no samples should be NaN");
    }
    for (const Tensors<double>& gradients : {without(loss, "terms"), results.backward}) {
      for (const auto& [name, values] : gradients) {
        for (const double value : values) {
          if (value != 0) fail(what + ": " + name + " of no samples should be 0");
        }
      }
    }
  }
  check_variants(what, kernels, c, in, with_path, step_size, results);
  return results;
}

void check_case(const Case& c) {
  const Tensors<double> in = random_inputs(c);
  const Oracle oracle = ask_oracle(c, in);
  Results first;
  const auto check = [&](const CpuKernels* kernels, const Case& as) {
    const std::string what = std::string(kernels->isa) + " " + as.text();
    const Results results = check_kernels(what, kernels, as, in, oracle);
    if (first.forward.empty()) first = results;
    expect_close(what + " against the first, forward", results.forward, first.forward, tolerance(as));
    expect_close(what + " against the first, backward", results.backward, first.backward, tolerance(as));
    expect_close(what + " against the first, loss", results.loss, first.loss, tolerance(as));
    if (as.float64) return;
    Case exact = c;
    exact.float64 = true;
    Tensors<double> with_path = in;
    with_path["path"] = oracle.values.at("path");
    const Tensors<double> expected = backward(cpu::available_kernels().front(), exact, with_path, {});
    expect_close(what + " against float64", results.backward, expected, tolerance(as));
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

// Layers that time and context scale and shift, and residual ones: with gates on all layers, inside, on the output only
// and on none, with few and with many columns.
void add_general(std::vector<Case>& list) {
  const std::vector<std::vector<int>> shapes = {{20}, {20, 20}, {7, 33}, {16, 16, 16}, {9, 5, 12, 4}};
  for (const std::vector<int>& hidden : shapes) {
    const unsigned all = (2u << hidden.size()) - 1, inside = all / 2, output = all - inside;
    for (const unsigned gated : {all, inside, output, 0u}) {
      for (const Divergence divergence : {Divergence::kExact, Divergence::kHutchinson}) {
        const size_t n = list.size();
        Case c;
        c.seed = n + 1;
        c.float64 = (n ^ n >> 2 ^ n >> 4) % 2 == 0;
        c.batch = n % 3 == 0 ? 49 : 18;
        c.dim = n % 4 == 3 ? 12 : 1 + n % 3;
        c.hidden = hidden;
        c.divergence = divergence;
        c.activation = n % 3 == 0   ? ActivationKind::kTanh
                       : n % 3 == 1 ? ActivationKind::kSilu
                                    : ActivationKind::kSoftplus;
        c.linear = n % 5 == 0;
        c.context_dim = n % 4 == 1 ? 3 : 0;
        c.residual =
            std::count(hidden.begin(), hidden.end(), hidden[0]) == static_cast<int>(hidden.size()) && n % 2 == 0;
        c.threads = 1 + n % 3;
        c.modulation.present = gated != 0 || !c.residual;
        c.modulation.gate = n % 2 == 0 ? GateKind::kSigmoid : GateKind::kAffine;
        c.modulation.time = n % 7 != 0;
        c.modulation.frequencies = n % 3 == 2 ? 4 : n % 7 == 0 ? 1 : 0;
        c.modulation.gated = gated;
        c.modulation.shifted = gated == 0 ? inside : n % 2 == 0 ? all : 0;
        if (!c.modulation.present) c.modulation = Modulation{};
        list.push_back(c);
      }
    }
  }
}

// Each list goes through the sizes or options that break kernels, beside others that change with them.
std::vector<Case> cases() {
  std::vector<Case> list;
  const std::vector<std::vector<int>> shapes = {{20, 12}, {1}, {33}, {16, 16}, {7, 65}, {1, 1}, {48}, {17, 1}};
  const std::vector<std::vector<int>> deep = {{9, 17, 5},
                                              {16, 8, 20},
                                              {5, 18, 3, 7},
                                              {16, 16, 16, 16},
                                              {4, 9, 3, 17, 5},
                                              {8, 8, 8, 8, 8},
                                              {3, 7, 2, 9, 4, 6},
                                              {8, 1, 8, 1, 8, 1},
                                              {2, 5, 3, 4, 6, 2, 9},
                                              {4, 4, 4, 4, 4, 4, 4},
                                              {3, 2, 4, 3, 5, 2, 3, 6},
                                              {17, 2, 2, 2, 2, 2, 2, 2}};
  const ActivationKind activations[] = {ActivationKind::kTanh, ActivationKind::kSoftplus, ActivationKind::kSilu,
                                        ActivationKind::kElu,  ActivationKind::kSelu,     ActivationKind::kGelu};
  const auto vary = [&](Case c) {
    c.seed = list.size() + 1;
    const size_t n = list.size();
    c.float64 = (n ^ n >> 2 ^ n >> 4) % 2 == 0;  // a pair of cases has one of each; so, over the list, has every layer
    c.activation = activations[n % 6];
    c.beta = c.activation == ActivationKind::kSoftplus ? 3 : 1;
    c.time = n % 4 != 1;
    c.context_dim = n % 5 == 2 ? 3 : n % 5 == 4 ? 1 : 0;
    c.linear = n % 3 != 1;
    if (n % 7 == 3) std::swap(c.t0, c.t1);
    list.push_back(c);
  };
  int turn = 0;
  for (const int64_t batch : {0, 1, 15, 16, 17, 47, 48, 49, 1003}) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      Case c;
      c.batch = batch;
      c.hidden = shapes[turn++ % shapes.size()];
      if (batch > 100) c.method = "heun";
      c.num_steps = batch > 100 ? 1 : 2;
      vary(c);
    }
  }
  for (const int dim : {1, 2, 3, 8, 9, 17, 63, 64}) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      Case c;
      c.dim = dim;
      c.batch = 19;
      c.hidden = shapes[turn++ % shapes.size()];
      if (dim > 3) c.method = "midpoint";
      c.num_steps = dim > 3 ? 1 : 3;
      vary(c);
    }
  }
  for (const std::string& method : methods()) {
    for (const Divergence divergence : {Divergence::kNone, Divergence::kExact, Divergence::kHutchinson}) {
      for (size_t layers = 1; layers <= kMaxHidden; ++layers) {
        Case c;
        c.method = method;
        c.divergence = divergence;
        c.batch = 21;
        c.hidden = layers > 2 ? deep[2 * (layers - 3) + turn++ % 2] : shapes[turn++ % shapes.size()];
        vary(c);
      }
    }
  }
  for (int inputs = 0; inputs < 8; ++inputs) {
    for (const ActivationKind activation : activations) {
      Case c;
      c.batch = 18;
      c.hidden = shapes[turn++ % shapes.size()];
      c.threads = 3;
      vary(c);
      list.back().time = (inputs & 1) != 0;
      list.back().linear = (inputs & 2) != 0;
      list.back().context_dim = (inputs & 4) != 0 ? 2 : 0;
      list.back().activation = activation;
    }
  }
  add_general(list);
  return list;
}

}  // namespace
}  // namespace jkoflow::test

int main(int count, char** arguments) {
  using namespace jkoflow::test;
  const size_t part = count == 3 ? std::strtoul(arguments[1], nullptr, 10) : 0;
  const size_t parts = count == 3 ? std::strtoul(arguments[2], nullptr, 10) : 1;
  const std::vector<Case> list = cases();
  for (size_t i = part; i < list.size(); i += parts) check_case(list[i]);
  for (const std::string& isa : jkoflow::cpu::available_isas()) std::printf("%s ", isa.c_str());
  std::printf("%s", jkoflow::cpu::split_problem().empty() ? "amx " : "");
  std::printf("kernels: %zu cases, %ld comparisons, %d failures\n", (list.size() - part + parts - 1) / parts,
              comparisons, failures);
  return failures == 0 ? 0 : 1;
}
