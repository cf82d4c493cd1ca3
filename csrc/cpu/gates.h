// Scale and shift of the layers of a stage, from the time and the context of each lane, and their adjoint.
#pragma once

#include "functions.h"
#include "tangent.h"
#include "trigonometry.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// The columns u of a stage from t and context among its inputs. A t that is the same for all lanes is put there first.
template <class Real, int Vectors>
void set_inputs(const Network<Real>& net, Real t, const Stage<Real>& stage) {
  const PackedModulation<Real>& modulation = net.modulation;
  const int count = modulation.kind.frequencies;
  Real* times = stage.input + net.dim * kTile<Real>;
  Real* u = stage.modulated.u;
  for (int j = 0; j < Vectors; ++j) {
    const ptrdiff_t lanes = j * kLanes<Real>;
    if (!net.row_times) store<Real>(times + lanes, Vector<Real>{} + t);
    const Vector<Real> time = load(times + lanes);
    Real* out = u + lanes;
    if (modulation.kind.time) {
      store<Real>(out, time);
      out += kTile<Real>;
    }
    for (int k = 0; k < count; ++k) {
      Vector<Real> sine, cosine;
      sine_and_cosine(Vector<Real>(modulation.frequency[k] * time), sine, cosine);
      store<Real>(out + k * kTile<Real>, cosine);
      store<Real>(out + (count + k) * kTile<Real>, sine);
    }
    out += 2 * count * kTile<Real>;
    for (int c = net.context_row; c < net.inputs; ++c, out += kTile<Real>) {
      store<Real>(out, load(stage.input + c * kTile<Real> + lanes));
    }
  }
}

// Scale of layer l in its tile of the stage, shift in space.shift.
template <class Real, int Vectors>
__attribute__((noinline)) void set_modulation(const Network<Real>& net, int l, const Stage<Real>& stage,
                                              const ForwardSpace<Real>& space) {
  const PackedModulation<Real>& modulation = net.modulation;
  const Real* u = stage.modulated.u;
  if (modulation.kind.has_gate(l)) {
    Real* scale = stage.modulated.scale[l];
    const bool sigmoid = modulation.kind.gate == GateKind::kSigmoid;
    product_any_rows<Real, Vectors>(
        modulation.gate[l], net.rows(l), modulation.columns, u, modulation.bias[l], [&](int first_row, auto& acc) {
          for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& a) {
            store<Real>(scale + at, sigmoid ? Math<Real>::gate(a).open : Vector<Real>(Real(1) + a));
          });
        });
  }
  if (modulation.kind.has_shift(l)) {
    product_any_rows<Real, Vectors>(
        modulation.shift[l], net.rows(l), modulation.columns, u, [&](int first_row, auto& acc) {
          for_each_vector_of(first_row, acc,
                             [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(space.shift + at, v); });
        });
  }
}

// Adjoint of set_modulation: from the gradients of the scale, in work.gate_bar, and of the shift to those of the
// matrices and, added to work.u_bar, of u.
template <class Real, int Vectors>
__attribute__((noinline)) void modulation_adjoint(const Network<Real>& net, int l, const Stage<Real>& stage,
                                                  const BackwardSpace<Real>& work, const Real* shift_bar,
                                                  bool parameters) {
  const PackedModulation<Real>& modulation = net.modulation;
  const ModulationSums<Real>& sums = work.sums.modulation;
  const int rows = net.rows(l), width = l < net.hidden ? net.width[l] : net.dim, columns = modulation.columns;
  const auto hand_on = [&](const Real* bar, const Real* transposed, Real* gradient) {
    product_any_rows<Real, Vectors>(transposed, columns, width, bar, [&](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc,
                         [&](int, int, ptrdiff_t at, const Vector<Real>& v) { add_to<Real>(work.u_bar + at, v); });
    });
    if (!parameters) return;
    narrow_product<Real, Vectors>(bar, 0, rows, stage.modulated.u, 0, columns, 1, work.narrow_panels, gradient);
  };
  if (modulation.kind.has_gate(l)) {
    const Real* scale = stage.modulated.scale[l];
    const bool sigmoid = modulation.kind.gate == GateKind::kSigmoid;
    for (int row = 0; row < rows; ++row) {
      Vector<Real> sum{};
      for (int j = 0; j < Vectors; ++j) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(row) * kTile<Real> + j * kLanes<Real>;
        Vector<Real> bar = load(work.gate_bar + at);
        if (sigmoid) {
          const Vector<Real> g = load(scale + at);
          bar *= g * (Real(1) - g);
          store<Real>(work.gate_bar + at, bar);
        }
        sum += bar;
      }
      add_to<Real>(sums.bias[l] + row * kLanes<Real>, sum);
    }
    hand_on(work.gate_bar, modulation.gate_t[l], sums.gate[l]);
  }
  if (modulation.kind.has_shift(l)) hand_on(shift_bar, modulation.shift_t[l], sums.shift[l]);
}

// Adjoint of set_inputs: from work.u_bar to the rows of t and context in input_bar, and to the frequencies.
template <class Real, int Vectors>
void inputs_adjoint(const Network<Real>& net, const Stage<Real>& stage, const BackwardSpace<Real>& work,
                    Real* input_bar) {
  const PackedModulation<Real>& modulation = net.modulation;
  const int count = modulation.kind.frequencies;
  for (int j = 0; j < Vectors; ++j) {
    const ptrdiff_t lanes = j * kLanes<Real>;
    const Vector<Real> time = load(stage.input + net.dim * kTile<Real> + lanes);
    const Real *u = stage.modulated.u + lanes, *bar = work.u_bar + lanes;
    Vector<Real> time_bar{};
    if (modulation.kind.time) {
      time_bar = load(bar);
      u += kTile<Real>;
      bar += kTile<Real>;
    }
    for (int k = 0; k < count; ++k) {
      const ptrdiff_t cosine = k * kTile<Real>, sine = (count + k) * kTile<Real>;
      const Vector<Real> phase_bar = load(u + cosine) * load(bar + sine) - load(u + sine) * load(bar + cosine);
      time_bar += modulation.frequency[k] * phase_bar;
      add_to<Real>(work.sums.modulation.frequency + k * kLanes<Real>, time * phase_bar);
    }
    bar += 2 * count * kTile<Real>;
    store<Real>(input_bar + net.dim * kTile<Real> + lanes, time_bar);
    for (int c = net.context_row; c < net.inputs; ++c, bar += kTile<Real>) {
      store<Real>(input_bar + c * kTile<Real> + lanes, load(bar));
    }
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
