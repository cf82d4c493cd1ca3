// Mills' ratio of the normal distribution, (1 - Phi(a)) / phi(a), for the activation gelu. Written by
// scripts/minimax.py.
#pragma once

#include "polynomial.h"

namespace jkoflow {

// By t = 1 / (1 + k a) and a polynomial in t - 1/2, for a >= 0 up to where phi(a) underflows; relative errors
// 3.2e-8 in float, 1.3e-17 in double.
template <class Real>
constexpr Real kMillsScale = sizeof(Real) == 4 ? Real(0.35) : Real(0.2);

// clang-format off
template <class Real, class V>
JKOFLOW_INLINE V mills_ratio(const V& t) {
  const V u = t - Real(0.5);
  if constexpr (sizeof(Real) == 4) {
    return t * polynomial(u, V{} + -0.0729807526f, 0.0685774374f, 0.110713605f, -0.140709356f, -0.204894131f,
                          0.205219369f, 0.712874595f, 0.859752467f, 0.634789264f);
  } else {
    return t * polynomial(u, V{} + -0.0021263163494598838, 0.0037858864648802508, 0.0026869480029381402,
                          -0.0085916697909083764, -0.0028653984819740507, 0.014218064457379891, 0.0055479004311386348,
                          -0.022744609352676199, -0.016351349128477233, 0.034253598401172001, 0.051092417620075831,
                          -0.030480967320346339, -0.13986401283708255, -0.10239805436888964, 0.19208404126298286,
                          0.66720643090122090, 1.1088302981401636, 1.3236630903443125, 1.2574577208746070,
                          0.99323764925909456, 0.66714663807558372, 0.38561620943063153);
  }
}
// clang-format on

}  // namespace jkoflow
