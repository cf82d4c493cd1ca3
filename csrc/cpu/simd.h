// Vectors of one instruction set. Compiled once per instruction set, in its own namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
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

// The sign of a number among its bits.
template <class Real>
constexpr auto kSignBit = static_cast<std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>>(
    sizeof(Real) == 4 ? int64_t{INT32_MIN} : INT64_MIN);

template <class V>
JKOFLOW_INLINE V magnitude(const V& x) {
  using Real = std::decay_t<decltype(x[0])>;
  return (V)((typename VectorOf<Real>::integer)x & ~kSignBit<Real>);
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
