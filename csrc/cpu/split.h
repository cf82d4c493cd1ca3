// Products of hidden layers on AMX tiles: every float is the sum of two bfloat16 numbers, high + low, and a product of
// two is taken as high * high + high * low + low * high, about as accurate as 2^-17. Only where the compiler is told to
// use AMX; elsewhere kSplit is false and the panel products of gemm.h do the work.
#pragma once

#include <type_traits>

#include "arena.h"
#include "gemm.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

#if defined(__AMX_BF16__)
template <class Real>
constexpr bool kSplit = std::is_same_v<Real, float>;
#else
template <class Real>
constexpr bool kSplit = false;
#endif

// An AMX tile has 16 rows of 64 bytes. Weights lie as (16 rows, 32 columns of a matrix); inputs as (16 pairs of rows,
// 16 samples), the two numbers of a pair side by side; sums are floats, (16 rows, 16 samples).
constexpr int kTileRows = 16, kTileDepth = 32, kTileBytes = 1024;

constexpr int tile_blocks(int count, int size) { return (count + size - 1) / size; }

// Where element (m, k) of split weights lies, in bfloat16 numbers, the high part: the low one is a tile further.
// [rows of 16][depth of 32][high, low][16][32]
constexpr ptrdiff_t split_offset(int m, int k, int depth) {
  const ptrdiff_t tile = static_cast<ptrdiff_t>(m / kTileRows) * tile_blocks(depth, kTileDepth) + k / kTileDepth;
  return tile * kTileBytes + m % kTileRows * kTileDepth + k % kTileDepth;
}
constexpr ptrdiff_t kLowPart = kTileBytes / 2;

constexpr ptrdiff_t split_size(int rows, int depth) {
  return static_cast<ptrdiff_t>(tile_blocks(rows, kTileRows)) * tile_blocks(depth, kTileDepth) * kTileBytes;
}

// The bits of x rounded to bfloat16, as a float's upper half.
inline uint32_t rounded_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x8000u) & 0xffff0000u;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// As pack() of gemm.h does: element(m, k), m < rows; the rest is zero. Rows of tiles with index = part (mod parts).
template <class Element>
void pack_split(uint16_t* packed, int rows, int padded_rows, int depth, int part, int parts, Element&& element) {
  const int padded_depth = tile_blocks(depth, kTileDepth) * kTileDepth;
  for (int m = 0; m < padded_rows; ++m) {
    if (m / kTileRows % parts != part) continue;
    for (int k = 0; k < padded_depth; ++k) {
      const float w = m < rows && k < depth ? static_cast<float>(element(m, k)) : 0.0f;
      const uint32_t high = rounded_bits(w);
      uint16_t* out = packed + split_offset(m, k, depth);
      out[0] = static_cast<uint16_t>(high >> 16);
      out[kLowPart] = static_cast<uint16_t>(rounded_bits(w - from_bits(high)) >> 16);
    }
  }
}

// A matrix between hidden layers in the form that its products read: panels, or split.
template <class Real>
struct Matrix {
  Real* panels = nullptr;
  uint16_t* split = nullptr;

  static Matrix take(int padded_rows, int depth, Arena& arena) {
    Matrix m;
    if constexpr (kSplit<Real>) {
      m.split = arena.take<uint16_t>(split_size(padded_rows, depth));
    } else {
      m.panels = arena.take<Real>(static_cast<ptrdiff_t>(padded_rows) * depth);
    }
    return m;
  }
  template <class Element>
  void pack_from(int rows, int padded_rows, int depth, int part, int parts, Element&& element) const {
    if (split != nullptr) {
      pack_split(split, rows, padded_rows, depth, part, parts, element);
    } else {
      pack<Real>(panels, rows, padded_rows, depth, part, parts, element);
    }
  }
};

// Room for one product's split input and for a few rows of its sums; empty where products are not split.
template <class Real>
struct SplitSpace {
  uint16_t* input = nullptr;
  Real* sums = nullptr;

  SplitSpace(int widest, Arena& arena) {
    if (!kSplit<Real>) return;
    // [depth of 32][vector][high, low][16 pairs][16 samples][2]
    input = arena.take<uint16_t>(static_cast<ptrdiff_t>(tile_blocks(widest, kTileDepth)) * kTileVectors * kTileBytes);
    sums = arena.take<Real>(2 * kTileRows * kTile<Real>);
  }
};

#if defined(__AMX_BF16__)

// The shape of the AMX tiles, for the calling thread while this object lives.
class TileSession {
 public:
  TileSession() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) {
      shape.row_bytes[tile] = 64;
      shape.rows[tile] = kTileRows;
    }
    _tile_loadconfig(&shape);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

template <int Vectors>
JKOFLOW_INLINE void split_input(const float* input, int depth, uint16_t* out) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const auto rounded = [](const Vector<float>& x) { return ((Bits)x + 0x8000u) & 0xffff0000u; };
  const auto pair = [](const Bits& even, const Bits& odd) { return even >> 16 | odd; };  // as halves of the lanes
  const int blocks = tile_blocks(depth, kTileDepth);
  for (int k = 0; k < blocks * kTileDepth; k += 2) {
    uint16_t* at = out + static_cast<ptrdiff_t>(k / kTileDepth) * Vectors * kTileBytes + k % kTileDepth / 2 * 32;
    for (int j = 0; j < Vectors; ++j, at += kTileBytes) {
      const float* row = input + static_cast<ptrdiff_t>(k) * kTile<float> + j * kLanes<float>;
      const Vector<float> even = k < depth ? load(row) : Vector<float>{};
      const Vector<float> odd = k + 1 < depth ? load(row + kTile<float>) : Vector<float>{};
      const Bits even_high = rounded(even), odd_high = rounded(odd);
      const Bits high = pair(even_high, odd_high);
      const Bits low = pair(rounded(even - (Vector<float>)even_high), rounded(odd - (Vector<float>)odd_high));
      std::memcpy(at, &high, sizeof high);
      std::memcpy(at + kLowPart, &low, sizeof low);
    }
  }
}

// Sums of one or two tiles of rows over all depths. Tiles 0 to 5 are sums, 6 holds weights, 7 inputs.
#define JKOFLOW_COLUMNS(first, second, third, part)   \
  _tile_loadd(7, in + (part), 64);                    \
  _tile_dpbf16ps(first, 6, 7);                        \
  if constexpr (Vectors > 1) {                        \
    _tile_loadd(7, in + kTileBytes + (part), 64);     \
    _tile_dpbf16ps(second, 6, 7);                     \
  }                                                   \
  if constexpr (Vectors > 2) {                        \
    _tile_loadd(7, in + 2 * kTileBytes + (part), 64); \
    _tile_dpbf16ps(third, 6, 7);                      \
  }
#define JKOFLOW_ROWS(weights, first, second, third) \
  _tile_loadd(6, weights, 64);                      \
  JKOFLOW_COLUMNS(first, second, third, 0)          \
  JKOFLOW_COLUMNS(first, second, third, kLowPart)   \
  _tile_loadd(6, (weights) + kLowPart, 64);         \
  JKOFLOW_COLUMNS(first, second, third, 0)
template <int Vectors, bool Two>
void split_panel(const uint16_t* weights, int blocks, const uint16_t* in, float* sums) {
  const uint16_t* lower = weights + static_cast<ptrdiff_t>(blocks) * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int k = 0; k < blocks; ++k) {
    JKOFLOW_ROWS(weights, 0, 1, 2)
    if constexpr (Two) {
      JKOFLOW_ROWS(lower, 3, 4, 5)
    }
    weights += kTileBytes;
    lower += kTileBytes;
    in += Vectors * kTileBytes;
  }
  constexpr int kStride = kTile<float> * sizeof(float);
  _tile_stored(0, sums, kStride);
  if constexpr (Vectors > 1) _tile_stored(1, sums + 16, kStride);
  if constexpr (Vectors > 2) _tile_stored(2, sums + 32, kStride);
  if constexpr (Two) {
    float* more = sums + kTileRows * kTile<float>;
    _tile_stored(3, more, kStride);
    if constexpr (Vectors > 1) _tile_stored(4, more + 16, kStride);
    if constexpr (Vectors > 2) _tile_stored(5, more + 32, kStride);
  }
}
#undef JKOFLOW_ROWS
#undef JKOFLOW_COLUMNS

#else

class TileSession {};

#endif

// weights times input, plus start, between hidden layers: as product() of gemm.h, whichever form the weights have.
template <class Real, int Vectors, class Epilogue>
JKOFLOW_INLINE void hidden_product(const Matrix<Real>& weights, int rows, int depth, const Real* input,
                                   const Real* start, const SplitSpace<Real>& space, Epilogue&& epilogue) {
#if defined(__AMX_BF16__)
  if constexpr (kSplit<Real>) {
    const int blocks = tile_blocks(depth, kTileDepth);
    split_input<Vectors>(input, depth, space.input);
    for (int row = 0; row < rows; row += 2 * kTileRows) {
      const uint16_t* w = weights.split + split_offset(row, 0, depth);
      const bool two = row + kTileRows < rows;
      if (two) {
        split_panel<Vectors, true>(w, blocks, space.input, space.sums);
      } else {
        split_panel<Vectors, false>(w, blocks, space.input, space.sums);
      }
      for (int i = 0; i < (two ? 2 : 1) * kTileRows; i += kPanelRows) {
        Vector<Real> acc[kPanelRows][Vectors];
        for_each_vector_of(i, acc, [&](int r, int, ptrdiff_t at, Vector<Real>& v) {
          v = load(space.sums + at);
          if (start != nullptr) v += start[row + r];
        });
        epilogue(row + i, acc);
      }
    }
    return;
  }
#endif
  (void)space;
  product<Real, Vectors>(weights.panels, rows, depth, input, start, epilogue);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
