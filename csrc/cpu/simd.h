// Vectors of one instruction set and the functions on them. Compiled once per instruction set, in its own namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#include "tanh_table.h"
#endif

#ifndef JKOFLOW_ISA
#error "define JKOFLOW_ISA: the namespace of this instruction set"
#endif

#define JKOFLOW_UNROLL _Pragma("GCC unroll 32")

namespace jkoflow::JKOFLOW_ISA {
// Unnamed: a template compiled here for a wide instruction set must never be merged by the linker with its twin from
// another file, or an old processor would run it.
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// 32 vector registers hold 8 x 3 accumulators beside their operands, 16 hold 4 x 3.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
};

template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));

template <class Real>
JKOFLOW_INLINE Vector<Real> load(const Real* p) {
  Vector<Real> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
JKOFLOW_INLINE void store(Real* p, const Vector<Real>& v) {
  std::memcpy(p, &v, sizeof v);
}

template <class Real>
JKOFLOW_INLINE void add_to(Real* p, const Vector<Real>& v) {
  store<Real>(p, load(p) + v);
}

// Keeps a sum over the panels of a product out of the registers, which the product's inner loop needs all.
template <class V>
JKOFLOW_INLINE void keep_in_memory(V& v) {
  asm volatile("" : "+m"(v));
}

template <class Real>
JKOFLOW_INLINE Real lane_sum(const Vector<Real>& v) {
  Real sum = 0;
  for (int i = 0; i < kLanes<Real>; ++i) sum += v[i];
  return sum;
}

// 1 / q to rounding error; the hardware estimate with a Newton step is several times faster than a division.
JKOFLOW_INLINE Vector<float> reciprocal(const Vector<float>& q) {
#if defined(__AVX512F__)
  const Vector<float> r = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)q);
  return r * (2.0f - q * r);
#elif defined(__AVX2__)
  const Vector<float> r = (Vector<float>)_mm256_rcp_ps((__m256)q);
  return r * (2.0f - q * r);
#else
  return 1.0f / q;
#endif
}
JKOFLOW_INLINE Vector<double> reciprocal(const Vector<double>& q) { return 1.0 / q; }

// Both keep NaN: a comparison with NaN is false, and the x86 minimum and maximum then return their second operand.
template <class V, class Real>
JKOFLOW_INLINE V clamp(const V& x, Real low, Real high) {
  const V bounded = x > high ? V{} + high : x;
  return bounded < low ? V{} + low : bounded;
}
#if defined(__AVX512F__)
JKOFLOW_INLINE Vector<float> clamp(const Vector<float>& x, float low, float high) {
  return (Vector<float>)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(low),
                                            _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(high), (__m512)x));
}
#elif defined(__AVX2__)
JKOFLOW_INLINE Vector<float> clamp(const Vector<float>& x, float low, float high) {
  return (Vector<float>)_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), (__m256)x));
}
#endif
template <class V>
JKOFLOW_INLINE V magnitude(const V& x) {
  return x < 0 ? -x : x;
}

template <class V>
JKOFLOW_INLINE V polynomial(const V&, const V& sum) {
  return sum;
}
// Horner's rule, highest power first.
template <class V, class Real, class... Rest>
JKOFLOW_INLINE V polynomial(const V& y, const V& sum, Real next, Rest... rest) {
  return polynomial(y, V(sum * y + next), rest...);
}

template <class Real>
struct Math {
  using V = Vector<Real>;
  using I = typename VectorOf<Real>::integer;

  static JKOFLOW_INLINE V exp(const V& x);
  static JKOFLOW_INLINE V tanh(const V& x);

  static JKOFLOW_INLINE V sigmoid(const V& x) { return reciprocal(V(Real(1) + exp(-x))); }

  // log(1 + e^x) = max(x, 0) + 2 artanh(y / (2 + y)) with y = e^-|x| in (0, 1]: full relative accuracy in the tail.
  static JKOFLOW_INLINE V softplus(const V& x) {
    const V y = exp(-magnitude(x));
    const V s = y * reciprocal(V(Real(2) + y));
    const V s2 = s * s;
    constexpr int kTerms = sizeof(Real) == 4 ? 7 : 16;  // (1/9)^terms / (2 terms + 1) is below rounding
    V sum = V{} + Real(1) / (2 * kTerms + 1);
    JKOFLOW_UNROLL
    for (int k = kTerms - 1; k >= 0; --k) sum = sum * s2 + Real(1) / (2 * k + 1);
    return (x < 0 ? V{} : x) + Real(2) * s * sum;
  }

 private:
  // e^x = 2^n e^r with |r| <= ln(2) / 2: returns r and sets scale = 2^n.
  static JKOFLOW_INLINE V reduce(const V& x, Real ln2_high, Real ln2_low, Real magic, int bias, int mantissa,
                                 V& scale) {
    const V shifted = x * Real(1.4426950408889634) + magic;  // adding 1.5 * 2^mantissa rounds to an integer
    const V n = shifted - magic;
    // A cast between vectors keeps the bits: the integer now stands in the lowest ones.
    const I exponent = (I)shifted - (I)(V{} + magic) + bias;
    scale = (V)(exponent << mantissa);
    return (x - n * ln2_high) - n * ln2_low;
  }
};

template <>
JKOFLOW_INLINE Vector<float> Math<float>::exp(const Vector<float>& x) {
  V scale;
  const V r = reduce(clamp(x, -87.0f, 88.0f), 0.693359375f, -2.12194440e-4f, 12582912.0f, 127, 23, scale);
  const V tail = polynomial(r, V{} + 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                            1.6666665459e-1f, 5.0000001201e-1f);
  return (tail * r * r + r + 1.0f) * scale;
}

template <>
JKOFLOW_INLINE Vector<double> Math<double>::exp(const Vector<double>& x) {
  V scale;
  const V r = reduce(clamp(x, -708.0, 709.0), 6.93145751953125e-1, 1.42860682030941723212e-6, 6755399441055744.0, 1023,
                     52, scale);
  const V r2 = r * r;
  const V p = r * polynomial(r2, V{} + 1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1);
  const V q = polynomial(r2, V{} + 3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1,
                         2.00000000000000000005);
  return (1.0 + 2.0 * (p / (q - p))) * scale;
}

#if defined(__AVX512F__)
// By table: 32 numbers fit two registers, and looking one up in each lane takes as long as a product.
template <>
JKOFLOW_INLINE Vector<float> Math<float>::tanh(const Vector<float>& x) {
  const __m512 size = _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(tanh_table::kBound), (__m512)((I)x & 0x7fffffff));
  const I piece = (I)((V)size * tanh_table::kScale + tanh_table::kShift) >> 19;  // a look-up reads the last five bits
  const auto power = [&](int k) {
    const float* numbers = tanh_table::kPowers[k];
    return (V)_mm512_permutex2var_ps(_mm512_load_ps(numbers), (__m512i)piece, _mm512_load_ps(numbers + 16));
  };
  V sum = power(4);
  JKOFLOW_UNROLL
  for (int k = 3; k >= 0; --k) sum = sum * (V)size + power(k);
  return (V)((I)sum | ((I)x & INT32_MIN));
}
#else
// Rational minimax approximation on [-8, 8], beyond which tanh is +-1 to 2e-7; maximal error 3e-7.
template <>
JKOFLOW_INLINE Vector<float> Math<float>::tanh(const Vector<float>& z) {
  const V x = clamp(z, -8.0f, 8.0f);
  const V y = x * x;
  const V p = x * polynomial(y, V{} + 1.632215786e-08f, 2.264680902e-05f, 3.616211675e-03f, 1.348179215e-01f, 1.0f);
  const V q = polynomial(y, V{} + 8.957803202e-07f, 3.484947814e-04f, 2.633329643e-02f, 4.681512555e-01f, 1.0f);
  return p * reciprocal(q);
}
#endif

template <>
JKOFLOW_INLINE Vector<double> Math<double>::tanh(const Vector<double>& x) {
  const V y = x * x;
  const V p = polynomial(y, V{} + -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3);
  const V q = polynomial(y, V{} + 1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3);
  const V size = magnitude(x);
  const V large = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
  return size < 0.625 ? x + x * y * (p / q) : (x < 0 ? -large : large);
}

// Where the lanes of a pair of rows come from when those that differ in bit `Bit` change places, as indices into the
// pair. Constants: GCC builds what it is to compute anew for every square.
template <class Index, int Lanes, int Bit>
struct Exchange {
  Index upper[Lanes] = {}, lower[Lanes] = {};
  constexpr Exchange() {
    for (int l = 0; l < Lanes; ++l) {
      upper[l] = (l & Bit) == 0 ? l : Lanes + l - Bit;
      lower[l] = (l & Bit) == 0 ? l + Bit : Lanes + l;
    }
  }
};

// Transposes a square of vectors in registers: after each round, lanes that differ in one bit have changed places.
template <class Real, int Bit = 1>
JKOFLOW_INLINE void transpose(Vector<Real> (&rows)[kLanes<Real>]) {
  constexpr int n = kLanes<Real>;
  JKOFLOW_UNROLL
  for (int i = 0; i < n; ++i) {
    if ((i & Bit) != 0) continue;
    const Vector<Real> upper = rows[i], lower = rows[i + Bit];
#if defined(__clang__)
    for (int l = 0; l < n; ++l) {
      rows[i][l] = (l & Bit) == 0 ? upper[l] : lower[l - Bit];
      rows[i + Bit][l] = (l & Bit) == 0 ? upper[l + Bit] : lower[l];
    }
#else
    using I = typename VectorOf<Real>::integer;
    static constexpr Exchange<std::remove_reference_t<decltype(I{}[0])>, n, Bit> kFrom;
    I from;
    std::memcpy(&from, kFrom.upper, sizeof from);
    rows[i] = __builtin_shuffle(upper, lower, from);
    std::memcpy(&from, kFrom.lower, sizeof from);
    rows[i + Bit] = __builtin_shuffle(upper, lower, from);
#endif
  }
  if constexpr (2 * Bit < n) transpose<Real, 2 * Bit>(rows);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
