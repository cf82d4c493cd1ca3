// Samples in tiles: who gets which, and how rows of tensors get into feature-major buffers and back.
#pragma once

#include "interruption.h"
#include "network.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Samples are dealt to partitions in whole vectors; a partition is the unit that sums its gradients.
template <class Real>
int partition_count(const Problem& p) {
  const int64_t vectors = (p.batch + kLanes<Real> - 1) / kLanes<Real>;
  return static_cast<int>(vectors < p.threads ? (vectors > 0 ? vectors : 1) : p.threads);
}

// Samples of a partition, from `begin` to `end`.
struct SampleRange {
  int64_t begin, end;
};
template <class Real>
SampleRange samples_of(const Problem& p, int partition, int partitions) {
  const int64_t vectors = (p.batch + kLanes<Real> - 1) / kLanes<Real>;
  const int64_t end = vectors * (partition + 1) / partitions * kLanes<Real>;
  return {vectors * partition / partitions * kLanes<Real>, end < p.batch ? end : p.batch};
}

// Calls visit(Constant<Vectors>, first_sample, samples) for every tile of a partition, tiles as even as can be, unless
// the call is interrupted.
template <class Real, class Visit>
void for_each_tile(const Problem& p, int partition, int partitions, Visit&& visit) {
  const int64_t vectors = (p.batch + kLanes<Real> - 1) / kLanes<Real>;
  const int64_t begin = vectors * partition / partitions, end = vectors * (partition + 1) / partitions;
  const int64_t tiles = (end - begin + kTileVectors - 1) / kTileVectors;
  for (int64_t tile = 0; tile < tiles && !cpu::is_interrupted(p); ++tile) {
    const int64_t from = begin + (end - begin) * tile / tiles, to = begin + (end - begin) * (tile + 1) / tiles;
    const int64_t first = from * kLanes<Real>, last = to * kLanes<Real>;
    const int samples = static_cast<int>((last < p.batch ? last : p.batch) - first);
    switch (to - from) {
      case 1:
        visit(Constant<1>{}, first, samples);
        break;
      case 2:
        visit(Constant<2>{}, first, samples);
        break;
      default:
        visit(Constant<3>{}, first, samples);
    }
  }
}
static_assert(kTileVectors == 3, "for_each_tile lists the tile sizes");

// Rows of a (batch, columns) tensor into a feature-major tile; lanes without a sample are zero. Null reads as zero.
template <class Real, int Vectors>
void load_tile(const void* tensor, int64_t first, int samples, int columns, Real* tile) {
  const Real* source = static_cast<const Real*>(tensor) + (tensor == nullptr ? 0 : first * columns);
  for (int c = 0; c < columns; ++c) {
    Real* row = tile + c * kTile<Real>;
    const int count = tensor == nullptr ? 0 : samples;
    for (int i = 0; i < count; ++i) row[i] = source[static_cast<ptrdiff_t>(i) * columns + c];
    for (int i = count; i < Vectors * kLanes<Real>; ++i) row[i] = 0;
  }
}

template <class Real>
void store_tile(void* tensor, int64_t first, int samples, int columns, const Real* tile) {
  Real* out = static_cast<Real*>(tensor) + first * columns;
  for (int i = 0; i < samples; ++i) {
    for (int c = 0; c < columns; ++c) out[static_cast<ptrdiff_t>(i) * columns + c] = tile[c * kTile<Real> + i];
  }
}

template <class Real, int Vectors, class Function>
JKOFLOW_INLINE void for_each_vector(int rows, Function&& function) {
  for (int i = 0; i < rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) function(i * kTile<Real> + j * kLanes<Real>);
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
