#include "case.h"

#include <cmath>
#include <random>
#include <sstream>
#include <stdexcept>

namespace jkoflow::test {

constexpr const char* kActivations[] = {"tanh", "softplus", "silu", "elu", "selu", "gelu"};

std::string Case::text() const {
  std::ostringstream out;
  out << (float64 ? "float64"
          : split ? "split float32"
                  : "float32")
      << " batch " << batch << " dim " << dim << " hidden (";
  for (size_t l = 0; l < hidden.size(); ++l) out << (l == 0 ? "" : ", ") << hidden[l];
  out << ") " << kActivations[static_cast<int>(activation)] << " beta " << beta << " divergence "
      << (divergence == Divergence::kNone    ? "none"
          : divergence == Divergence::kExact ? "exact"
                                             : "hutchinson")
      << " " << method << " steps " << num_steps << " [" << t0 << ", " << t1 << "] outputs " << outputs()
      << " tolerance " << rtol << " " << atol << " threads " << threads << (residual ? " residual" : "");
  if (modulation.present) {
    out << " modulation " << (modulation.gate == GateKind::kSigmoid ? "sigmoid" : "affine") << " gated "
        << modulation.gated << " shifted " << modulation.shifted << " frequencies " << modulation.frequencies
        << (modulation.time ? " of t" : "");
  }
  out << (time ? " time" : "") << (linear ? " linear" : "") << " context " << context_dim << " seed " << seed;
  return out.str();
}

int64_t Case::modulation_size() const {
  int64_t size = modulation.frequencies;
  for (int l = 0; l <= layers(); ++l) {
    if (modulation.has_gate(l)) size += static_cast<int64_t>(rows(l)) * (modulation_columns() + 1);
    if (modulation.has_shift(l)) size += static_cast<int64_t>(rows(l)) * modulation_columns();
  }
  return modulation.present ? size : 0;
}

std::vector<double> normal(uint64_t seed, size_t count, double scale) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> draw;
  std::vector<double> values(count);
  for (double& value : values) value = static_cast<float>(scale * draw(bits));
  return values;
}

Tensors<double> random_inputs(const Case& c) {
  Tensors<double> in;
  uint64_t seed = c.seed * 1000;
  const auto give = [&](const std::string& name, int64_t count, double scale) {
    if (count > 0) in[name] = normal(++seed, static_cast<size_t>(count), scale);
  };
  give("x", c.batch * c.dim, 1);
  give("context", c.batch * c.context_dim, 1);
  if (c.divergence == Divergence::kHutchinson) give("noise", c.batch * c.dim, 1);
  int columns = c.input_columns();
  for (int l = 0; l <= c.layers(); ++l) {
    const int rows = c.rows(l);
    give("weight" + std::to_string(l), static_cast<int64_t>(rows) * columns, 1 / std::sqrt(columns));
    give("bias" + std::to_string(l), rows, 0.5);
    columns = rows;
  }
  if (c.linear) give("linear", static_cast<int64_t>(c.dim) * c.dim, 0.5 / std::sqrt(c.dim));
  give("modulation", c.modulation_size(), 0.6);
  give("bar x_end", c.batch * c.dim, 1);
  give("bar logdet", c.batch, 1);
  give("bar path", (c.num_steps + 1) * c.batch * c.dim, 1);
  give("times", c.time ? c.batch : 0, 1);
  give("bar x_outputs", c.outputs() * c.batch * c.dim, 1);
  give("bar logdet_outputs", c.outputs() * c.batch, 1);
  return in;
}

std::vector<std::string> differentiable(const Case& c) {
  std::vector<std::string> names = {"x"};
  if (c.context_dim > 0) names.emplace_back("context");
  for (int l = 0; l <= c.layers(); ++l) {
    names.push_back("weight" + std::to_string(l));
    names.push_back("bias" + std::to_string(l));
  }
  if (c.linear) names.emplace_back("linear");
  if (c.modulation_size() > 0) names.emplace_back("modulation");
  return names;
}

}  // namespace jkoflow::test
