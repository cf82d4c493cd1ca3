// Matrix products of the tile kernel: register-blocked, on packed weights and feature-major tiles.
#pragma once

#include <type_traits>

#include "simd.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// A tile holds kTileVectors vectors of samples; every row of a tile buffer has this fixed stride.
constexpr int kTileVectors = 3;
template <class Real>
constexpr int kTile = kTileVectors * kLanes<Real>;

// Rows of weights that one panel product computes together.
constexpr int kPanelRows = kManyRegisters ? 8 : 4;

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls visit(first, Constant<n>) for the numbers up to `count`, a few at a time: sums side by side do not wait for
// their own last addition.
template <class Visit>
JKOFLOW_INLINE void for_each_few(int count, Visit&& visit) {
  constexpr int kFew = 4;
  int i = 0;
  for (; i + kFew <= count; i += kFew) visit(i, Constant<kFew>{});
  for (; i < count; ++i) visit(i, Constant<1>{});
}

// acc[i][j] += sum_k weights[k][i] * input[k][j], i over the rows of the panel, j over vectors of samples.
template <class Real, int Rows, int Vectors>
JKOFLOW_INLINE void panel_product(int depth, const Real* __restrict weights, const Real* __restrict input,
                                  Vector<Real> (&acc)[Rows][Vectors]) {
  for (int k = 0; k < depth; ++k) {
    Vector<Real> in[Vectors];
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) in[j] = load(input + j * kLanes<Real>);
    JKOFLOW_UNROLL
    for (int i = 0; i < Rows; ++i) {
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) acc[i][j] += weights[i] * in[j];
    }
    weights += Rows;
    input += kTile<Real>;
  }
}

template <class Real, int Rows, int Vectors>
JKOFLOW_INLINE void clear(Vector<Real> (&acc)[Rows][Vectors]) {
  JKOFLOW_UNROLL
  for (int i = 0; i < Rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) acc[i][j] = Vector<Real>{};
  }
}

// One panel. `start` are the values that its rows start from, such as biases, or null for zero.
template <class Real, int Rows, int Vectors, class Epilogue>
JKOFLOW_INLINE void panel(int row, int depth, const Real* weights, const Real* input, const Real* start,
                          Epilogue&& epilogue) {
  weights += static_cast<ptrdiff_t>(row) * depth;
  Vector<Real> acc[Rows][Vectors];
  clear<Real>(acc);
  if (start != nullptr) {
    JKOFLOW_UNROLL
    for (int i = 0; i < Rows; ++i) {
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) acc[i][j] = Vector<Real>{} + start[row + i];
    }
  }
  if constexpr (Rows >= 4) {
    panel_product<Real, Rows, Vectors>(depth, weights, input, acc);
  } else {
    // So few sums would wait for each other: the halves of the depth go side by side.
    Vector<Real> other[Rows][Vectors];
    clear<Real>(other);
    const int half = depth / 2;
    const Real *late_weights = weights + static_cast<ptrdiff_t>(half) * Rows, *late_input = input + half * kTile<Real>;
    for (int k = 0; k < half; ++k) {
      panel_product<Real, Rows, Vectors>(1, weights + k * Rows, input + k * kTile<Real>, acc);
      panel_product<Real, Rows, Vectors>(1, late_weights + k * Rows, late_input + k * kTile<Real>, other);
    }
    panel_product<Real, Rows, Vectors>(depth - 2 * half, late_weights + half * Rows, late_input + half * kTile<Real>,
                                       acc);
    JKOFLOW_UNROLL
    for (int i = 0; i < Rows; ++i) {
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) acc[i][j] += other[i][j];
    }
  }
  epilogue(row, acc);
}

// Rows of a panel, from the type of its accumulators.
template <class Accumulators>
constexpr int kRowsOf = std::extent_v<std::remove_reference_t<Accumulators>>;

// For epilogues: calls function(row, j, at, acc[i][j]) for every vector, `at` being its place in a tile buffer.
template <class V, int Rows, int Vectors, class Function>
JKOFLOW_INLINE void for_each_vector_of(int first_row, V (&acc)[Rows][Vectors], Function&& function) {
  constexpr int kVector = sizeof(V) / sizeof(acc[0][0][0]);
  JKOFLOW_UNROLL
  for (int i = 0; i < Rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) {
      const int row = first_row + i;
      function(row, j, static_cast<ptrdiff_t>(row * kTileVectors + j) * kVector, acc[i][j]);
    }
  }
}

// Calls function(row, j, at) for every vector j of every row of a tile buffer.
template <class Real, int Vectors, class Function>
JKOFLOW_INLINE void for_each_vector_in(int rows, Function&& function) {
  for (int row = 0; row < rows; ++row) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) function(row, j, static_cast<ptrdiff_t>(row) * kTile<Real> + j * kLanes<Real>);
  }
}

// weights (rows, depth) packed by pack(), times input [depth][kTile], plus start; rows is a multiple of kPanelRows.
// epilogue(first_row, acc[rows][Vectors]) consumes each panel while it is in registers.
template <class Real, int Vectors, class Epilogue>
JKOFLOW_INLINE void product(const Real* weights, int rows, int depth, const Real* input, const Real* start,
                            Epilogue&& epilogue) {
  for (int row = 0; row < rows; row += kPanelRows) {
    panel<Real, kPanelRows, Vectors>(row, depth, weights, input, start, epilogue);
  }
}

template <class Real, int Vectors, class Epilogue>
JKOFLOW_INLINE void product(const Real* weights, int rows, int depth, const Real* input, Epilogue&& epilogue) {
  product<Real, Vectors>(weights, rows, depth, input, nullptr, epilogue);
}

// The same for any number of rows: the rest goes in panels of 4, 2 and 1.
template <class Real, int Vectors, class Epilogue>
JKOFLOW_INLINE void product_any_rows(const Real* weights, int rows, int depth, const Real* input, const Real* start,
                                     Epilogue&& epilogue) {
  int row = 0;
  for (; row + kPanelRows <= rows; row += kPanelRows) {
    panel<Real, kPanelRows, Vectors>(row, depth, weights, input, start, epilogue);
  }
  if (kPanelRows > 4 && row + 4 <= rows) {
    panel<Real, 4, Vectors>(row, depth, weights, input, start, epilogue);
    row += 4;
  }
  if (row + 2 <= rows) {
    panel<Real, 2, Vectors>(row, depth, weights, input, start, epilogue);
    row += 2;
  }
  if (row < rows) panel<Real, 1, Vectors>(row, depth, weights, input, start, epilogue);
}

template <class Real, int Vectors, class Epilogue>
JKOFLOW_INLINE void product_any_rows(const Real* weights, int rows, int depth, const Real* input, Epilogue&& epilogue) {
  product_any_rows<Real, Vectors>(weights, rows, depth, input, nullptr, epilogue);
}

// Packs element(m, k), m < rows, into panels [panel][depth][panel rows]; rows from `rows` to `padded_rows` are zero.
// Panels have kPanelRows rows, then 4, 2, 1 as in product_any_rows. Only panels with index = part (mod parts) are
// written, so that threads share the work.
template <class Real, class Element>
JKOFLOW_INLINE void pack(Real* packed, int rows, int padded_rows, int depth, int part, int parts, Element&& element) {
  int height = kPanelRows;
  for (int row = 0, index = 0; row < padded_rows; row += height, ++index) {
    while (row + height > padded_rows) height /= 2;
    if (index % parts != part) continue;
    Real* out = packed + static_cast<ptrdiff_t>(row) * depth;
    if (height == kPanelRows && row + kPanelRows <= rows) {
      for (int k = 0; k < depth; ++k, out += kPanelRows) {
        JKOFLOW_UNROLL
        for (int i = 0; i < kPanelRows; ++i) out[i] = element(row + i, k);
      }
      continue;
    }
    for (int k = 0; k < depth; ++k) {
      for (int i = 0; i < height; ++i) *out++ = row + i < rows ? element(row + i, k) : Real(0);
    }
  }
}

// ---- Outer products over samples, for the gradients of the weights.

// Widest column panel, in vectors; rows per block so that accumulators fill the registers.
constexpr int kOuterVectors = 2;
static_assert(kOuterVectors == 2, "outer_product lists the widths of panels: this one, and 1");
constexpr int outer_rows(int vectors) { return kManyRegisters ? (vectors == 1 ? 16 : 12) : (vectors == 1 ? 8 : 6); }
template <class Real>
constexpr int kOuterWidth = kOuterVectors * kLanes<Real>;

// gradient[i][n] += sum over stages and samples of left[stage][i][sample] * right[stage][sample][n].
template <class Real, int Rows, int Vectors>
JKOFLOW_INLINE void outer_block(const Real* __restrict left, ptrdiff_t stage_stride, int stages, int samples,
                                const Real* __restrict right, Real* gradient, ptrdiff_t gradient_stride) {
  // From zero, then added once: a running sum over the whole batch loses several times the accuracy.
  Vector<Real> acc[Rows][Vectors];
  JKOFLOW_UNROLL
  for (int i = 0; i < Rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) acc[i][j] = Vector<Real>{};
  }
  for (int stage = 0; stage < stages; ++stage) {
    const Real* l = left + stage * stage_stride;
    const Real* r = right + static_cast<ptrdiff_t>(stage) * kTile<Real> * Vectors * kLanes<Real>;
    for (int k = 0; k < samples; ++k) {
      Vector<Real> in[Vectors];
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) in[j] = load(r + j * kLanes<Real>);
      JKOFLOW_UNROLL
      for (int i = 0; i < Rows; ++i) {
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) acc[i][j] += l[i * kTile<Real> + k] * in[j];
      }
      r += Vectors * kLanes<Real>;
    }
  }
  JKOFLOW_UNROLL
  for (int i = 0; i < Rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) add_to(gradient + i * gradient_stride + j * kLanes<Real>, acc[i][j]);
  }
}

template <class Real, int Rows, int Vectors>
JKOFLOW_INLINE void outer_rows_from(int row, int rows, const Real* left, ptrdiff_t stage_stride, int stages,
                                    int samples, const Real* right, Real* gradient, ptrdiff_t gradient_stride) {
  for (; row + Rows <= rows; row += Rows) {
    outer_block<Real, Rows, Vectors>(left + row * kTile<Real>, stage_stride, stages, samples, right,
                                     gradient + row * gradient_stride, gradient_stride);
  }
  if constexpr (Rows > 1) {
    constexpr int kNext = Rows > 8 ? 8 : Rows > 4 ? 4 : Rows / 2;
    outer_rows_from<Real, kNext, Vectors>(row, rows, left, stage_stride, stages, samples, right, gradient,
                                          gradient_stride);
  }
}

// gradient (rows, columns) += left [stages][rows][kTile] times right, columns a multiple of the lanes and right in
// panels [column panel][stages][kTile][panel width] as transpose_panels() and transpose_narrow_panels() write them.
template <class Real>
__attribute__((noinline)) void outer_product(const Real* left, ptrdiff_t stage_stride, int rows, int stages,
                                             int samples, const Real* right, int columns, Real* gradient) {
  for (int column = 0; column < columns; column += kOuterWidth<Real>) {
    const Real* r = right + static_cast<ptrdiff_t>(column) * stages * kTile<Real>;
    Real* g = gradient + column;
    const auto run = [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      outer_rows_from<Real, outer_rows(kVectors), kVectors>(0, rows, left, stage_stride, stages, samples, r, g,
                                                            columns);
    };
    if (columns - column >= kOuterWidth<Real>) {
      run(Constant<kOuterVectors>{});
    } else {
      run(Constant<1>{});
    }
  }
}

// Width of the panel that a column lies in: the last one may be narrower.
template <class Real>
JKOFLOW_INLINE int panel_width(int column, int columns) {
  const int rest = columns - column / kOuterWidth<Real> * kOuterWidth<Real>;
  return rest < kOuterWidth<Real> ? rest : kOuterWidth<Real>;
}

// Where element (sample, column) of a stage lies in the panels that outer_product reads.
template <class Real>
JKOFLOW_INLINE ptrdiff_t panel_offset(int column, int columns, int stage, int stages, int sample) {
  const int first = column / kOuterWidth<Real> * kOuterWidth<Real>;
  return static_cast<ptrdiff_t>(first) * stages * kTile<Real> +
         (static_cast<ptrdiff_t>(stage) * kTile<Real> + sample) * panel_width<Real>(column, columns) + (column - first);
}

// Writes rows of source [rows][kTile] of one stage into the panels; their number is a multiple of the lanes.
template <class Real, int Vectors>
JKOFLOW_INLINE void transpose_rows(const Real* source, int rows, int columns, int stage, int stages, Real* panels) {
  constexpr int n = kLanes<Real>;
  for (int column = 0; column < rows; column += n) {
    const int width = panel_width<Real>(column, columns);
    for (int j = 0; j < Vectors; ++j) {
      Vector<Real> block[n];
      JKOFLOW_UNROLL
      for (int i = 0; i < n; ++i) block[i] = load(source + (column + i) * kTile<Real> + j * n);
      transpose<Real>(block);
      Real* out = panels + panel_offset<Real>(column, columns, stage, stages, j * n);
      JKOFLOW_UNROLL
      for (int i = 0; i < n; ++i) store<Real>(out + i * width, block[i]);
    }
  }
}

// All rows. Not inlined: the products beside it would get too few registers.
template <class Real, int Vectors>
__attribute__((noinline)) void transpose_panels(const Real* source, int columns, int stage, int stages, Real* panels) {
  transpose_rows<Real, Vectors>(source, columns, columns, stage, stages, panels);
}

// The same for a number of rows that is no multiple of the lanes; the columns from `rows` on stay as they are.
template <class Real, int Vectors>
__attribute__((noinline)) void transpose_narrow_panels(const Real* source, int rows, int columns, int stage, int stages,
                                                       Real* panels) {
  const int whole = rows / kLanes<Real> * kLanes<Real>;
  transpose_rows<Real, Vectors>(source, whole, columns, stage, stages, panels);
  for (int row = whole; row < rows; ++row) {
    const int width = panel_width<Real>(row, columns);
    Real* out = panels + panel_offset<Real>(row, columns, stage, stages, 0);
    const Real* from = source + row * kTile<Real>;
    for (int k = 0; k < Vectors * kLanes<Real>; ++k) out[static_cast<ptrdiff_t>(k) * width] = from[k];
  }
}

// ---- The same where the right operand has few columns, the network's inputs or outputs: up to kFewColumns are not
// padded to a vector, their sums stay spread over the lanes.

constexpr int kFewColumns = 8;

// Distance of two rows of such a gradient.
template <class Real>
constexpr int narrow_stride(int columns) {
  return columns <= kFewColumns ? columns * kLanes<Real> : (columns + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

template <class Real, int Vectors, int Columns>
JKOFLOW_INLINE void lane_product(const Real* left, ptrdiff_t left_stride, const Real* right, ptrdiff_t right_stride,
                                 int stages, Real* gradient) {
  Vector<Real> sum[Columns];
  JKOFLOW_UNROLL
  for (int c = 0; c < Columns; ++c) sum[c] = Vector<Real>{};
  for (int stage = 0; stage < stages; ++stage) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) {
      const Vector<Real> l = load(left + stage * left_stride + j * kLanes<Real>);
      JKOFLOW_UNROLL
      for (int c = 0; c < Columns; ++c) {
        sum[c] += l * load(right + stage * right_stride + c * kTile<Real> + j * kLanes<Real>);
      }
    }
  }
  JKOFLOW_UNROLL
  for (int c = 0; c < Columns; ++c) add_to<Real>(gradient + c * kLanes<Real>, sum[c]);
}

// gradient (rows, narrow_stride) += left [stages][rows][kTile] times right [stages][columns][kTile]. `panels` has room
// for the stages' right operands in the form of outer_product, with zeros in the columns that pad.
template <class Real, int Vectors>
__attribute__((noinline)) void narrow_product(const Real* left, ptrdiff_t left_stride, int rows, const Real* right,
                                              ptrdiff_t right_stride, int columns, int stages, Real* panels,
                                              Real* gradient) {
  const int stride = narrow_stride<Real>(columns);
  if (columns > kFewColumns) {
    constexpr int kSamples = Vectors * kLanes<Real>;
    for (int stage = 0; stage < stages; ++stage) {
      transpose_narrow_panels<Real, Vectors>(right + stage * right_stride, columns, stride, stage, stages, panels);
    }
    outer_product<Real>(left, left_stride, rows, stages, kSamples, panels, stride, gradient);
    return;
  }
  for (int i = 0; i < rows; ++i) {
    const Real* l = left + i * kTile<Real>;
    Real* out = gradient + static_cast<ptrdiff_t>(i) * stride;
    int c = 0;
    for (; c + 3 <= columns; c += 3) {
      lane_product<Real, Vectors, 3>(l, left_stride, right + c * kTile<Real>, right_stride, stages,
                                     out + c * kLanes<Real>);
    }
    if (c + 2 <= columns) {
      lane_product<Real, Vectors, 2>(l, left_stride, right + c * kTile<Real>, right_stride, stages,
                                     out + c * kLanes<Real>);
    } else if (c < columns) {
      lane_product<Real, Vectors, 1>(l, left_stride, right + c * kTile<Real>, right_stride, stages,
                                     out + c * kLanes<Real>);
    }
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
