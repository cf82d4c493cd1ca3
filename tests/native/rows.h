// Rows of the tensors of a call: picked out of a batch, and compared bit by bit wherever they stand in it.
#pragma once

#include "check.h"

namespace jkoflow::test {

// How the rows of a tensor lie: (leading, batch, columns).
struct Layout {
  const char* name;
  int leading, columns;
};

inline std::vector<Layout> layouts(const Case& c) {
  const int dim = c.dim, outputs = c.outputs();
  return {{"x", 1, dim},
          {"context", 1, c.context_dim},
          {"noise", 1, dim},
          {"times", 1, 1},
          {"bar x_end", 1, dim},
          {"bar logdet", 1, 1},
          {"bar x_outputs", outputs, dim},
          {"bar logdet_outputs", outputs, 1},
          {"x_end", 1, dim},
          {"logdet", 1, 1},
          {"x_outputs", outputs, dim},
          {"logdet_outputs", outputs, 1},
          {"evaluations", 1, 1},
          {"grad x", 1, dim},
          {"grad context", 1, c.context_dim},
          {"grad times", 1, 1}};
}

// The tensors that have rows with those rows alone, in their order; the others as they are.
inline Tensors<double> select_rows(const Case& c, const Tensors<double>& tensors, const std::vector<int64_t>& rows) {
  Tensors<double> out = tensors;
  for (const Layout& layout : layouts(c)) {
    const auto found = tensors.find(layout.name);
    if (found == tensors.end()) continue;
    std::vector<double>& values = out[layout.name];
    values.clear();
    for (int64_t i = 0; i < layout.leading; ++i) {
      for (const int64_t row : rows) {
        const auto first = found->second.begin() + (i * c.batch + row) * layout.columns;
        values.insert(values.end(), first, first + layout.columns);
      }
    }
  }
  return out;
}

struct Step {
  double t, dt;
  int first_output, end_output;
  std::vector<double> x;
  bool operator==(const Step& other) const {
    return t == other.t && dt == other.dt && first_output == other.first_output && end_output == other.end_output &&
           x == other.x;
  }
};

// The recorded steps of a row, the first one first.
inline std::vector<Step> steps_of(const Case& c, const Tensors<double>& values, int64_t row) {
  std::vector<Step> steps;
  const auto number = [&](const char* name, size_t at) { return values.at(name).at(at); };
  for (double at = number("last_step", row); at >= 0; at = number("record previous", static_cast<size_t>(at))) {
    const size_t i = static_cast<size_t>(at);
    const auto x = values.at("record x").begin() + static_cast<ptrdiff_t>(i) * c.dim;
    steps.insert(steps.begin(), {number("record t", i),
                                 number("record dt", i),
                                 static_cast<int>(number("record first_output", i)),
                                 static_cast<int>(number("record end_output", i)),
                                 {x, x + c.dim}});
  }
  return steps;
}

// Row number rows[i] of `expected`, a batch of c, is number i of `got`; -1: no matter. Steps are compared if both have
// any.
inline void expect_same_rows(const std::string& what, const Case& c, const Tensors<double>& got,
                             const Tensors<double>& expected, const std::vector<int64_t>& rows) {
  const int64_t batch = static_cast<int64_t>(rows.size());
  for (const Layout& layout : layouts(c)) {
    const auto ours = got.find(layout.name), theirs = expected.find(layout.name);
    if (ours == got.end() || theirs == expected.end()) continue;
    ++comparisons;
    for (int64_t at = 0; at < layout.leading * batch * layout.columns; ++at) {
      const int64_t row = rows[at / layout.columns % batch], leading = at / layout.columns / batch;
      if (row < 0) continue;
      const double other = theirs->second[(leading * c.batch + row) * layout.columns + at % layout.columns];
      if (ours->second[at] == other) continue;
      fail(what + ": " + layout.name + " of row " + std::to_string(row) + " is " + std::to_string(ours->second[at]) +
           " and not " + std::to_string(other));
      break;
    }
  }
  if (got.count("last_step") == 0 || expected.count("last_step") == 0) return;
  ++comparisons;
  for (int64_t i = 0; i < batch; ++i) {
    if (rows[i] < 0 || steps_of(c, got, i) == steps_of(c, expected, rows[i])) continue;
    return fail(what + ": row " + std::to_string(rows[i]) + " takes other steps");
  }
}

}  // namespace jkoflow::test
