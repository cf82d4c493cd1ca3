// What activation.h needs of vectors.
#pragma once

#include "../activation.h"
#include "../mills.h"
#include "simd.h"

#if defined(__AVX512F__)
#include "tanh_table.h"
#endif

namespace jkoflow::JKOFLOW_ISA {
namespace {

// 1 / q to rounding error. With AVX-512 the hardware's estimate with a Newton step is faster than a division; it may
// miss 1 / 1. The narrower sets divide while they multiply.
JKOFLOW_INLINE Vector<float> reciprocal(const Vector<float>& q) {
#if defined(__AVX512F__)
  const Vector<float> r = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)q);
  return r * (2.0f - q * r);
#else
  return 1.0f / q;
#endif
}
JKOFLOW_INLINE Vector<double> reciprocal(const Vector<double>& q) { return 1.0 / q; }

template <class Real>
struct Math {
  using V = Vector<Real>;
  using I = typename VectorOf<Real>::integer;

  // tanh and its slope by y = e^-2|z| and w = 1 - y, which keeps its digits near 0: h = w / (1 + y), and 1 - h^2 is
  // y (1 + h)^2, as 1 + h = 2 / (1 + y).
  static JKOFLOW_INLINE Bend<V> bend(const V& z) {
    const Power p = negative_power<2>(bounded(magnitude(z), kUnderflow / 2));
    const V y = p.value(), w = (Real(1) - p.scale) - p.scale * p.rest;
    const V h = w / (Real(1) + y), step = Real(1) + h;
    return {(V)((I)h | ((I)z & kSignBit<Real>)), y * step * step};
  }

  static JKOFLOW_INLINE Gate<V> gate(const V& z) {
    return gate(z, negative_power<1>(bounded(magnitude(z), kUnderflow)).value());
  }

  // log(1 + y) = 2 artanh(y / (2 + y)) with y = e^-|z| in [0, 1]: full relative accuracy in the tail.
  static JKOFLOW_INLINE SoftStep<V> soft_step(const V& z) {
    const V y = negative_power<1>(bounded(magnitude(z), kUnderflow)).value();
    const V s = y * reciprocal(V(Real(2) + y));
    const V s2 = s * s;
    constexpr int kTerms = sizeof(Real) == 4 ? 7 : 16;  // (1/9)^terms / (2 terms + 1) is below rounding
    V sum = V{} + Real(1) / (2 * kTerms + 1);
    JKOFLOW_UNROLL
    for (int k = kTerms - 1; k >= 0; --k) sum = sum * s2 + Real(1) / (2 * k + 1);
    return {Real(2) * s * sum, gate(z, y)};
  }

  static JKOFLOW_INLINE Decay<V> decay(const V& z) {
    const Power p = negative_power<1>(bounded(magnitude(z), kUnderflow));
    return {p.value(), p.scale * p.rest + (p.scale - Real(1))};
  }

  static JKOFLOW_INLINE Normal<V> normal(const V& z) {
    const V a = bounded(magnitude(z), sizeof(Real) == 4 ? Real(13.2665) : Real(37.6563));  // a^2 / 2 is kUnderflow
    const V square = a * a;
    const V density = negative_power<1>(V(Real(0.5) * square)).value() * Real(0.39894228040143267794);
    const V tail = density * mills_ratio<Real>(reciprocal(V(Real(1) + kMillsScale<Real> * a)));
    return {density, z < 0 ? tail : Real(1) - tail, square};
  }

 private:
  // scale (1 + rest), where scale is a power of 2, or 0.
  struct Power {
    V scale, rest;
    JKOFLOW_INLINE V value() const { return scale * rest + scale; }
  };

  // Where e^-a is taken for 0: the scale's exponent becomes that of 0.
  static constexpr Real kUnderflow = sizeof(Real) == 4 ? 88 : 709;

  // Keeps NaN: a comparison with NaN is false, and the x86 minimum then returns its second operand.
  static JKOFLOW_INLINE V bounded(const V& a, Real bound) {
    if constexpr (sizeof(Real) == 4) {
#if defined(__AVX512F__)
      return (V)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(bound), (__m512)a);
#elif defined(__AVX2__)
      return (V)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)a);
#endif
    }
    return a > bound ? V{} + bound : a;
  }

  // e^(-K a) for a >= 0 up to kUnderflow / K, as 2^n 2^f with |f| <= 1/2. One constant does for the reduction: its
  // rounding counts as a relative error of a.
  template <int K>
  static JKOFLOW_INLINE Power negative_power(const V& a) {
    constexpr bool kFloat = sizeof(Real) == 4;
    constexpr Real kFactor = static_cast<Real>(-1.4426950408889634074 * K);
    // Added, this rounds to an integer, which then stands in the lowest bits, with the exponent's bias.
    constexpr Real kMagic = kFloat ? 12582912 + 127 : 6755399441055744 + 1023;
    const V shifted = a * kFactor + kMagic;
    const V n = shifted - kMagic;
    const V f = a * kFactor - n;
    return {(V)((I)shifted << (kFloat ? 23 : 52)), f * power_quotient(f)};
  }

  // (2^f - 1) / f, by scripts/minimax.py: relative errors 1.1e-8 and 2.3e-19.
  static JKOFLOW_INLINE V power_quotient(const V& f) {
    if constexpr (sizeof(Real) == 4) {
      return polynomial(f, V{} + 0.000154035119f, 0.00133907360f, 0.00961823748f, 0.0555035743f, 0.240226498f,
                        0.693147188f);
    } else {
      return polynomial(f, V{} + 2.5678534007395573e-11, 4.4558049077585353e-10, 7.0549321968305563e-9,
                        1.0178057169066153e-7, 1.3215486721553774e-6, 1.5252733841378604e-5, 0.00015403530393465943,
                        0.0013333558146406630, 0.0096181291076284371, 0.055504108664821627, 0.24022650695910071,
                        0.69314718055994531);
    }
  }

  // From y = e^-|z|.
  static JKOFLOW_INLINE Gate<V> gate(const V& z, const V& y) {
    const V larger = reciprocal(V(Real(1) + y));
    const V smaller = y * larger;
    return {z < 0 ? smaller : larger, z < 0 ? larger : smaller};
  }
};

#if defined(__AVX512F__)
// By table: 32 numbers fit two registers, and looking one up in each lane takes as long as a product. tanh and 1 - tanh
// each are a number of the table and the same small rest, so that both are right to rounding, and the slope, their
// product with 1 + tanh, too.
template <>
JKOFLOW_INLINE Bend<Vector<float>> Math<float>::bend(const Vector<float>& z) {
  namespace table = tanh_table;
  const V a = bounded(magnitude(z), table::kBound);
  const I piece = (I)(a * table::kScale + table::kShift) >> 20;  // a look-up reads the last five bits
  const auto look_up = [&](int k) {
    const float* numbers = table::kTable[k];
    return (V)_mm512_permutex2var_ps(_mm512_load_ps(numbers), (__m512i)piece, _mm512_load_ps(numbers + 16));
  };
  const V d = a - look_up(0);
  V sum = look_up(2 + table::kDegree);
  JKOFLOW_UNROLL
  for (int k = 1 + table::kDegree; k >= 3; --k) sum = sum * d + look_up(k);
  const V rest = sum * d;
  const V h = look_up(1) + rest, complement = look_up(2) - rest;
  return {(V)((I)h | ((I)z & kSignBit<float>)), complement * h + complement};
}
#endif

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
