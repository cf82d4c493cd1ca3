// Sine and cosine of vectors, for embeddings of time.
#pragma once

#include "simd.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// pi / 2 in three parts, of which the first two have so few bits that their products with small integers are exact.
template <class Real>
struct HalfPi;
template <>
struct HalfPi<float> {
  static constexpr float kHigh = 1.5703125f, kMiddle = 4.837512969970703125e-4f, kLow = 7.549790126e-8f;
  static constexpr float kMagic = 12582912.0f, kBound = 1024.0f;
};
template <>
struct HalfPi<double> {
  static constexpr double kHigh = 1.5707963267341256, kMiddle = 6.077100506303966e-11, kLow = 2.0222662487959506e-21;
  static constexpr double kMagic = 6755399441055744.0, kBound = 1048576.0;
};

// To rounding error, by Taylor's series around the nearest multiple of pi / 2; beyond the bound lane by lane.
template <class V>
JKOFLOW_INLINE void sine_and_cosine(const V& x, V& sine, V& cosine) {
  using Real = std::remove_cv_t<std::remove_reference_t<decltype(x[0])>>;
  using I = typename VectorOf<Real>::integer;
  const V shifted = x * Real(0.63661977236758134308) + HalfPi<Real>::kMagic;
  const V n = shifted - HalfPi<Real>::kMagic;
  const V r = ((x - n * HalfPi<Real>::kHigh) - n * HalfPi<Real>::kMiddle) - n * HalfPi<Real>::kLow;
  const V y = r * r;
  V s, c;
  if constexpr (sizeof(Real) == 4) {
    s = polynomial(y, V{} + Real(1 / 362880.0), Real(-1 / 5040.0), Real(1 / 120.0), Real(-1 / 6.0));
    c = polynomial(y, V{} + Real(1 / 40320.0), Real(-1 / 720.0), Real(1 / 24.0), Real(-1 / 2.0));
  } else {
    s = polynomial(y, V{} + 1 / 355687428096000.0, -1 / 1307674368000.0, 1 / 6227020800.0, -1 / 39916800.0,
                   1 / 362880.0, -1 / 5040.0, 1 / 120.0, -1 / 6.0);
    c = polynomial(y, V{} + 1 / 20922789888000.0, -1 / 87178291200.0, 1 / 479001600.0, -1 / 3628800.0, 1 / 40320.0,
                   -1 / 720.0, 1 / 24.0, -1 / 2.0);
  }
  s = r + r * y * s;
  c = Real(1) + y * c;
  const I quarter = (I)shifted;  // the integer stands in the lowest bits
  const auto odd = (quarter & 1) != 0;
  const V first = odd ? c : s, second = odd ? s : c;
  sine = (quarter & 2) != 0 ? -first : first;
  cosine = ((quarter + 1) & 2) != 0 ? -second : second;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(Real)); ++i) {
    if (x[i] <= HalfPi<Real>::kBound && x[i] >= -HalfPi<Real>::kBound) continue;
    sine[i] = static_cast<Real>(__builtin_sin(static_cast<double>(x[i])));
    cosine[i] = static_cast<Real>(__builtin_cos(static_cast<double>(x[i])));
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
