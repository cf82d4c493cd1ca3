// The matrices that scale and shift the layers by time and context, packed for the panel products once a call.
#pragma once

#include "../problem.h"
#include "arena.h"
#include "gemm.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

constexpr int kMaxLayers = kMaxHidden + 1;

// Where the parts of Modulation::tensor begin, in numbers.
struct ModulationPlaces {
  ptrdiff_t gate[kMaxLayers], gate_bias[kMaxLayers], shift[kMaxLayers];

  explicit ModulationPlaces(const Problem& p) {
    const ptrdiff_t columns = p.modulation.columns(p.context_dim);
    ptrdiff_t at = p.modulation.frequencies;
    for (int l = 0; l <= p.hidden_layers; ++l) {
      const ptrdiff_t rows = l < p.hidden_layers ? p.width[l] : p.dim;
      gate[l] = at;
      gate_bias[l] = at + rows * columns;
      if (p.modulation.has_gate(l)) at += rows * (columns + 1);
      shift[l] = at;
      if (p.modulation.has_shift(l)) at += rows * columns;
    }
  }
};

template <class Real>
struct PackedModulation {
  Modulation kind;
  int columns;                                                                   // of u
  Real* frequency = nullptr;                                                     // w
  Real *gate[kMaxLayers] = {}, *bias[kMaxLayers] = {}, *shift[kMaxLayers] = {};  // G, g and S, padded
  Real *gate_t[kMaxLayers] = {}, *shift_t[kMaxLayers] = {};                      // transposed, for the adjoint

  // `rows` are the padded widths of the layers.
  PackedModulation(const Problem& p, const int* rows, Arena& arena, bool adjoint)
      : kind(p.modulation), columns(p.modulation.columns(p.context_dim)) {
    if (!kind.present) return;
    frequency = arena.take<Real>(kind.frequencies);
    for (int l = 0; l <= p.hidden_layers; ++l) {
      const int height = l < p.hidden_layers ? rows[l] : p.dim;
      const auto matrix = [&] { return arena.take<Real>(static_cast<ptrdiff_t>(height) * columns); };
      if (kind.has_gate(l)) {
        gate[l] = matrix();
        bias[l] = arena.take<Real>(height);
        if (adjoint) gate_t[l] = matrix();
      }
      if (kind.has_shift(l)) {
        shift[l] = matrix();
        if (adjoint) shift_t[l] = matrix();
      }
    }
  }

  // Thread `part` of `parts` packs its share.
  void pack_from(const Problem& p, const int* rows, int part, int parts) const {
    if (!kind.present) return;
    const Real* tensor = static_cast<const Real*>(kind.tensor);
    const ModulationPlaces places(p);
    for (int l = 0; l <= p.hidden_layers; ++l) {
      const bool last = l == p.hidden_layers;
      const int width = last ? p.dim : p.width[l], height = last ? p.dim : rows[l], depth = columns;
      const auto pack_both = [&](Real* packed, Real* transposed, const Real* from) {
        if (packed == nullptr) return;
        pack<Real>(packed, width, height, depth, part, parts, [=](int m, int k) { return from[m * depth + k]; });
        if (transposed == nullptr) return;
        pack<Real>(transposed, depth, depth, width, part, parts, [=](int m, int k) { return from[k * depth + m]; });
      };
      pack_both(gate[l], gate_t[l], tensor + places.gate[l]);
      pack_both(shift[l], shift_t[l], tensor + places.shift[l]);
      for (int i = 0; part == 0 && bias[l] != nullptr && i < height; ++i) {
        bias[l][i] = i < width ? tensor[places.gate_bias[l] + i] : Real(0);
      }
    }
    for (int k = 0; part == 0 && k < kind.frequencies; ++k) frequency[k] = tensor[k];
  }
};

// What a stage leaves behind of its modulation: tiles, null where a layer has none.
template <class Real>
struct ModulatedStage {
  Real* u = nullptr;               // [columns]
  Real* scale[kMaxLayers] = {};    // gate(G u + g)
  Real* affine[kMaxLayers] = {};   // W h + b, for the adjoint
  Real* slope[kMaxHidden] = {};    // sigma' without the scale, for the adjoint
  Real* slope_gradient = nullptr;  // of the closed-form divergence with respect to the last layer's scaled slope
};

// Sums of the gradients, in the places of PackedModulation; frequencies and biases have kLanes columns.
template <class Real>
struct ModulationSums {
  Real *frequency = nullptr, *gate[kMaxLayers] = {}, *bias[kMaxLayers] = {}, *shift[kMaxLayers] = {};

  ModulationSums(const PackedModulation<Real>& modulation, const int* rows, int hidden, int dim, Arena& arena) {
    if (!modulation.kind.present) return;
    frequency = arena.take<Real>(modulation.kind.frequencies * kLanes<Real>);
    const ptrdiff_t stride = narrow_stride<Real>(modulation.columns);
    for (int l = 0; l <= hidden; ++l) {
      const int height = l < hidden ? rows[l] : dim;
      if (modulation.kind.has_gate(l)) {
        gate[l] = arena.take<Real>(height * stride);
        bias[l] = arena.take<Real>(height * kLanes<Real>);
      }
      if (modulation.kind.has_shift(l)) shift[l] = arena.take<Real>(height * stride);
    }
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
