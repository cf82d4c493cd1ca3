// Comparisons that count and print what does not hold.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "case.h"

namespace jkoflow::test {

inline int failures = 0;
inline long comparisons = 0;

inline void fail(const std::string& message) {
  ++failures;
  std::printf("FAILED: %s\n", message.c_str());
}

// Every tensor of `got` is also in `expected` (which may hold more) and differs by at most `tolerance` times the larger
// of 1 and the largest entry. Tolerance 0: the same numbers. NaN differs from everything.
inline void expect_close(const std::string& what, const Tensors<double>& got, const Tensors<double>& expected,
                         double tolerance) {
  for (const auto& [name, values] : got) {
    ++comparisons;
    const auto found = expected.find(name);
    if (found == expected.end() || found->second.size() != values.size()) {
      fail(what + ": " + name + " has no counterpart of its size");
      continue;
    }
    double scale = 1, error = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      scale = std::fmax(scale, std::fabs(found->second[i]));
      const double difference = std::fabs(values[i] - found->second[i]);
      error = difference <= error ? error : difference;  // so that NaN stays
      if (std::isnan(error)) break;
    }
    if (!(error <= tolerance * scale)) {
      fail(what + ": " + name + " is off by " + std::to_string(error / scale / (tolerance > 0 ? tolerance : 1)) +
           (tolerance > 0 ? " tolerances" : " of its largest entry, and should be the same"));
    }
  }
}

}  // namespace jkoflow::test
