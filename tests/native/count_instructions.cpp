// One call of a kernel for callgrind to count.
//   count_instructions forward|backward|loss DIM WIDTH LAYERS BATCH STEPS
//   count_instructions compiler
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "case.h"
#include "cpu/dispatch.h"

namespace {

using jkoflow::test::Case;
using jkoflow::test::Tensors;

using Floats = std::vector<float>;

Floats floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && std::string(arguments[1]) == "compiler") {
#ifdef __clang__
    std::puts(__VERSION__);
#else
    std::puts("GCC " __VERSION__);
#endif
    return 0;
  }
  if (count != 7) {
    std::fprintf(stderr, "usage: %s forward|backward|loss DIM WIDTH LAYERS BATCH STEPS\n", arguments[0]);
    return 2;
  }
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  const std::string what = arguments[1];
  Case c;
  c.dim = number(2);
  c.hidden.assign(number(4), number(3));
  c.batch = number(5);
  c.num_steps = number(6);
  const Tensors<double> in = jkoflow::test::random_inputs(c);
  Floats x = floats(in.at("x")), x_end(x.size()), logdet(c.batch), path((c.num_steps + 1) * x.size());
  std::vector<Floats> weights, biases, weight_grads, bias_grads;
  for (int l = 0; l <= c.layers(); ++l) {
    weights.push_back(floats(in.at("weight" + std::to_string(l))));
    biases.push_back(floats(in.at("bias" + std::to_string(l))));
  }
  weight_grads = weights;
  bias_grads = biases;

  jkoflow::Problem problem;
  jkoflow::Adjoint adjoint;
  problem.batch = c.batch;
  problem.dim = c.dim;
  problem.time = c.time;
  problem.hidden_layers = c.layers();
  problem.num_steps = c.num_steps;
  problem.tableau = jkoflow::test::tableau(c.method);
  problem.x = x.data();
  for (int l = 0; l <= c.layers(); ++l) {
    if (l < c.layers()) problem.width[l] = c.hidden[l];
    problem.weight[l] = weights[l].data();
    problem.bias[l] = biases[l].data();
    adjoint.weight[l] = weight_grads[l].data();
    adjoint.bias[l] = bias_grads[l].data();
  }
  problem.x_end = x_end.data();
  problem.logdet = logdet.data();
  problem.path = path.data();
  const Floats x_bar = floats(in.at("bar x_end")), logdet_bar = floats(in.at("bar logdet"));
  adjoint.x_end = x_bar.data();
  adjoint.logdet = logdet_bar.data();

  if (what == "forward") {
    jkoflow::cpu::forward(problem);
  } else if (what == "backward") {
    for (int step = 0; step <= c.num_steps; ++step) {  // any positions will do
      std::copy(x.begin(), x.end(), path.begin() + static_cast<ptrdiff_t>(step * x.size()));
    }
    jkoflow::cpu::backward(problem, adjoint);
  } else if (what == "loss") {
    double terms[3];
    jkoflow::JkoLoss loss;
    loss.step_size = 0.5;
    loss.terms = terms;
    jkoflow::cpu::jko_loss(problem, loss, adjoint);
  } else {
    std::fprintf(stderr, "no kernel '%s'\n", what.c_str());
    return 2;
  }
  return 0;
}
