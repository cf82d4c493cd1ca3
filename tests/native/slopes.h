// Gradients against the oracle's derivatives: the slope of each tensor along a random direction.
#pragma once

#include "check.h"
#include "oracle.h"

namespace jkoflow::test {

using Slopes = std::map<std::string, double>;

// In float32 the tests of the Python package judge the accuracy; here a wrong number must show.
inline double tolerance(const Case& c) { return c.float64 ? 1e-11 : 1e-4; }

inline std::vector<double> direction(const Case& c, size_t count) { return normal(c.seed + 77, count, 1); }

// In float64 only: those of the named tensors.
inline Slopes slopes(Answer answer, const Case& c, const Tensors<double>& in, const std::vector<std::string>& names) {
  Slopes found;
  for (const std::string& name : names) {
    if (c.float64 && c.batch > 0) found[name] = derivative(answer, c, in, name, direction(c, in.at(name).size()));
  }
  return found;
}

// A wrong element of a gradient changes its slope along a random direction.
inline void check_gradients(const std::string& what, const Case& c, const Slopes& slopes, const Tensors<double>& got) {
  for (const auto& [name, expected] : slopes) {
    const std::vector<double>& gradient = got.at("grad " + name);
    const std::vector<double> along = direction(c, gradient.size());
    double slope = 0, size = 1;
    for (size_t i = 0; i < gradient.size(); ++i) {
      slope += gradient[i] * along[i];
      size += std::fabs(gradient[i] * along[i]);
    }
    expect_close(what + ", grad " + name, {{"slope", {slope / size}}}, {{"slope", {expected / size}}}, tolerance(c));
  }
}

}  // namespace jkoflow::test
