// Where numbers lie: panels in shared memory and weights packed in the order in which lanes read them.
#pragma once

#include "precision.h"

#ifdef __CUDACC__
#define JKOFLOW_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define JKOFLOW_HOST_DEVICE inline
#endif

namespace jkoflow::cuda {

JKOFLOW_HOST_DEVICE constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// A panel holds a row for each sample, at a stride that is a multiple of 32; column c of row r lies at c ^ swizzle(r).
// Reads of 8 rows x 4 pairs of columns, of 4 pairs of rows x 8 columns, and writes of fragments then hit every bank
// once.
JKOFLOW_HOST_DEVICE int swizzle(int row) { return ((((row >> 1) & 1) << 1) | ((row ^ (row >> 2)) & 1)) << 3; }
JKOFLOW_HOST_DEVICE int panel_index(int row, int column, int stride) { return row * stride + (column ^ swizzle(row)); }

// An operand of warp groups: `rows` samples by columns of units, in blocks of 32 columns, a row of a block being 128
// bytes whose 16-byte pieces are swizzled by the row, as the hardware expects. Within 8 columns the even ones come
// first, in the order in which packed weights stand for k.
JKOFLOW_HOST_DEVICE int operand_index(int row, int column, int rows) {
  const int piece = ((column & 24) >> 2) | (column & 1), at = (column & 7) >> 1;
  return (column >> 5) * (rows * 32) + row * 32 + ((piece ^ (row & 7)) << 2) + at;
}

// Weights (rows a multiple of 16, depth a multiple of 8) are packed by strips of 16 rows. On tensor cores a lane reads
// the four numbers of its fragment of 16 x 8 as one vector; depth is permuted within 8 so that the other factor is read
// in pairs: the instruction's k = t and t + 4 stand for columns 2t and 2t + 1. For FMA a strip is [depth / 4][16][4].
struct Element {
  int row, column;
};
// The first of four numbers that lie side by side, the index-th four. With tensor cores number i is 8 (i % 2) rows and
// i / 2 columns further, with FMA i columns.
JKOFLOW_HOST_DEVICE Element packed_four(Precision precision, int index, int depth) {
  const int strip = index / (4 * depth), within = index - strip * 4 * depth;
  if (precision == Precision::kFp32) return {strip * 16 + within % 16, within / 16 * 4};
  const int lane = within % 32;
  return {strip * 16 + lane / 4, within / 32 * 8 + 2 * (lane % 4)};
}

// Rows of a narrow sum are an odd multiple of 8 floats apart, so that 4 rows x 4 pairs of columns, which half a warp
// adds to at a time, lie in different banks.
JKOFLOW_HOST_DEVICE constexpr int sum_stride(int columns) { return (round_up(columns, 8) / 8 | 1) * 8; }

// Slots of the adjoint with tangents, by layer and then what there is one of.
struct AdjointSlots {
  int layers, middle, hutchinson;
  JKOFLOW_HOST_DEVICE AdjointSlots(int layers, int hutchinson)
      : layers(layers), middle(layers > 2), hutchinson(hutchinson) {}
  JKOFLOW_HOST_DEVICE int slope(int layer) const { return layer; }
  JKOFLOW_HOST_DEVICE int curvature(int layer) const { return layers + layer; }
  JKOFLOW_HOST_DEVICE int slope_bar(int layer) const { return 2 * layers + layer; }
  JKOFLOW_HOST_DEVICE int value_bar() const { return 3 * layers; }           // of the last layer's value
  JKOFLOW_HOST_DEVICE int middle_tangent() const { return 3 * layers + 1; }  // a_2 of three layers
  JKOFLOW_HOST_DEVICE int noise() const { return 3 * layers + 1 + middle; }  // and the next one
  JKOFLOW_HOST_DEVICE int count() const { return noise() + 2 * hutchinson; }
};

}  // namespace jkoflow::cuda
