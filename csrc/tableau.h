// Explicit Runge-Kutta tableau as numbers. The methods themselves are listed once, in jkoflow/ops/tableau.py.
#pragma once

namespace jkoflow {

constexpr int kMaxStages = 7;

struct Tableau {
  int stages = 0;
  double a[kMaxStages][kMaxStages] = {};  // strictly lower triangular
  double b[kMaxStages] = {};
  double c[kMaxStages] = {};
};

}  // namespace jkoflow
