// Memory of one call: packed weights, and the buffers of each thread's tile. Sizes and pointers come from one code
// path.
#pragma once

#include "../problem.h"
#include "arena.h"
#include "gemm.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

template <class Real>
constexpr int padded_width(int width) {
  constexpr int kMultiple = kLanes<Real> > kPanelRows ? kLanes<Real> : kPanelRows;
  return (width + kMultiple - 1) / kMultiple * kMultiple;
}

// The network of a Problem with weights packed for the panel products. Hidden widths are padded with zero weights.
template <class Real>
struct Network {
  int dim, inputs;  // inputs: columns of layer 1 without t
  int hidden;       // hidden layers
  int width[kMaxHidden], padded[kMaxHidden];
  bool exact;       // whether the divergence is wanted
  bool has_linear;  // whether the velocity has the term A x
  ActivationKind activation;
  Real beta;

  Real *first, *middle = nullptr, *last, *linear = nullptr;
  // What the closed-form divergence needs of the weights: c_a = sum_i W1[a, i] W2[i, a], so that div = c . s1, padded;
  // with two layers M = W2 * (W1x W3)^T elementwise, so that div = s2^T M s1, packed and row by row.
  Real *coupling = nullptr, *coupling_rows = nullptr;
  Real* first_columns = nullptr;  // W1x transposed, (dim, padded H1): the right factor of M's product
  Real* product_grad = nullptr;   // for the adjoint: gradient of (W1x W3)^T, with the shape of coupling_rows
  Real *bias[kMaxHidden], *bias_last, *time;
  Real *first_t, *middle_t, *coupling_t, *last_t, *linear_t;  // transposed, for the adjoint

  Network(const Problem& p, Arena& arena, bool adjoint)
      : dim(p.dim),
        inputs(p.dim + p.context_dim),
        hidden(p.hidden_layers),
        exact(p.exact),
        has_linear(p.linear != nullptr),
        activation(p.activation),
        beta(static_cast<Real>(p.beta)) {
    for (int l = 0; l < hidden; ++l) {
      width[l] = p.width[l];
      padded[l] = padded_width<Real>(width[l]);
      bias[l] = arena.take<Real>(padded[l]);
    }
    const ptrdiff_t top = padded[hidden - 1];
    time = arena.take<Real>(padded[0]);
    bias_last = arena.take<Real>(dim);
    first = arena.take<Real>(padded[0] * inputs);
    last = arena.take<Real>(dim * top);
    if (has_linear) linear = arena.take<Real>(dim * dim);
    if (hidden == 2) middle = arena.take<Real>(padded[1] * padded[0]);
    if (exact) coupling = arena.take<Real>(hidden == 2 ? padded[1] * padded[0] : padded[0]);
    if (exact && hidden == 2) {
      coupling_rows = arena.take<Real>(width[1] * padded[0]);
      first_columns = arena.take<Real>(dim * padded[0]);
    }
    if (!adjoint) return;
    first_t = arena.take<Real>(inputs * padded[0]);
    last_t = arena.take<Real>(top * dim);
    if (has_linear) linear_t = arena.take<Real>(dim * dim);
    if (hidden == 2) {
      middle_t = arena.take<Real>(padded[0] * padded[1]);
      if (exact) coupling_t = arena.take<Real>(padded[0] * padded[1]);
      if (exact) product_grad = arena.take<Real>(width[1] * padded[0]);
    }
  }

  // Thread `part` of `parts` prepares its share; wait() is a barrier of all of them. Ends with one.
  template <class Wait>
  void prepare(const Problem& p, bool adjoint, int part, int parts, Wait&& wait) const {
    pack_weights(p, adjoint, part, parts);
    if (exact) {
      copy_first_columns(p, part, parts);
      wait();
      set_coupling(p, part, parts);
      if (hidden == 2) {
        wait();
        pack_square(coupling_rows, padded[0], coupling, adjoint ? coupling_t : nullptr, part, parts);
      }
    }
    wait();
  }

  // Row m of (W1x W3)^T times the elements of `factor` (one row, or null), into `out`: padded H1 numbers.
  void product_row(const Problem& p, int m, const Real* factor, Real* out) const {
    const Real* w_last = static_cast<const Real*>(p.weight[hidden]) + m;
    for (int k = 0; k < padded[0]; k += kLanes<Real>) {
      Vector<Real> sum{};
      for (int i = 0; i < dim; ++i) {
        sum += w_last[static_cast<ptrdiff_t>(i) * width[1]] * load(first_columns + i * padded[0] + k);
      }
      store<Real>(out + k, sum);
    }
    for (int k = 0; factor != nullptr && k < width[0]; ++k) out[k] *= factor[k];
  }

 private:
  void pack_weights(const Problem& p, bool adjoint, int part, int parts) const {
    const int stride = p.input_columns();
    const auto column = [&](int input) { return input < p.dim || !p.time ? input : input + 1; };
    const Real* w1 = static_cast<const Real*>(p.weight[0]);
    const Real* w_last = static_cast<const Real*>(p.weight[hidden]);
    const Real* a = static_cast<const Real*>(p.linear);
    const int top = width[hidden - 1];
    const auto give = [&](Real* packed, int rows, int padded_rows, int depth, auto&& element) {
      pack<Real>(packed, rows, padded_rows, depth, part, parts, element);
    };
    give(first, width[0], padded[0], inputs, [=](int m, int k) { return w1[m * stride + column(k)]; });
    give(last, dim, dim, top, [=](int m, int k) { return w_last[m * top + k]; });
    if (a != nullptr) give(linear, dim, dim, dim, [=, d = dim](int m, int k) { return a[m * d + k]; });
    if (adjoint) {
      give(first_t, inputs, inputs, width[0], [=](int m, int k) { return w1[k * stride + column(m)]; });
      give(last_t, top, padded[hidden - 1], dim, [=](int m, int k) { return w_last[k * top + m]; });
      if (a != nullptr) give(linear_t, dim, dim, dim, [=, d = dim](int m, int k) { return a[k * d + m]; });
    }
    if (hidden == 2) {
      pack_square(static_cast<const Real*>(p.weight[1]), width[0], middle, adjoint ? middle_t : nullptr, part, parts);
    }
    if (part != 0) return;
    for (int l = 0; l < hidden; ++l) copy_padded(bias[l], static_cast<const Real*>(p.bias[l]), 1, width[l], padded[l]);
    copy_padded(bias_last, static_cast<const Real*>(p.bias[hidden]), 1, dim, dim);
    copy_padded(time, w1 + p.dim, stride, p.time ? width[0] : 0, padded[0]);
  }

  // A matrix (H2, H1) whose rows are `stride` apart, and, unless null, its transpose.
  void pack_square(const Real* rows, int stride, Real* packed, Real* packed_t, int part, int parts) const {
    pack<Real>(packed, width[1], padded[1], width[0], part, parts,
               [=](int m, int k) { return rows[static_cast<ptrdiff_t>(m) * stride + k]; });
    if (packed_t == nullptr) return;
    pack<Real>(packed_t, width[0], padded[0], width[1], part, parts,
               [=](int m, int k) { return rows[static_cast<ptrdiff_t>(k) * stride + m]; });
  }

  void copy_first_columns(const Problem& p, int part, int parts) const {
    const int stride = p.input_columns();
    for (int i = part; first_columns != nullptr && i < dim; i += parts) {
      copy_padded(first_columns + i * padded[0], static_cast<const Real*>(p.weight[0]) + i, stride, width[0],
                  padded[0]);
    }
  }

  void set_coupling(const Problem& p, int part, int parts) const {
    if (hidden == 2) {
      const Real* w2 = static_cast<const Real*>(p.weight[1]);
      for (int m = part; m < width[1]; m += parts) {
        product_row(p, m, w2 + static_cast<ptrdiff_t>(m) * width[0],
                    coupling_rows + static_cast<ptrdiff_t>(m) * padded[0]);
      }
      return;
    }
    const int stride = p.input_columns();
    const Real *w1 = static_cast<const Real*>(p.weight[0]), *w2 = static_cast<const Real*>(p.weight[1]);
    for (int a = part; a < padded[0]; a += parts) {
      Real sum = 0;
      for (int i = 0; a < width[0] && i < dim; ++i) sum += w1[a * stride + i] * w2[i * width[0] + a];
      coupling[a] = sum;
    }
  }

  static void copy_padded(Real* out, const Real* source, int stride, int count, int padded_count) {
    for (int i = 0; i < padded_count; ++i) out[i] = i < count ? source[static_cast<ptrdiff_t>(i) * stride] : Real(0);
  }
};

// What a stage leaves behind for its adjoint.
enum class Keep {
  kNothing,  // buffers may be shared by all stages
  kValues,   // tanh: its derivatives follow from its values
  kJets,     // sigma, sigma' and sigma'' of every hidden layer
};

inline Keep keep_for_adjoint(ActivationKind kind) {
  return kind == ActivationKind::kTanh ? Keep::kValues : Keep::kJets;
}

// One stage: its input and, per hidden layer, sigma, sigma' and sigma'' as [width][kTile].
// After the divergence, the last layer's sigma'' holds sigma'' times the derivative of the divergence by its slope.
template <class Real>
struct Stage {
  Real* input;
  Real *value[kMaxHidden], *slope[kMaxHidden], *curvature[kMaxHidden];
};

// Buffers to carry a tile through Runge-Kutta steps, with the stages of `steps` steps kept.
template <class Real>
struct ForwardSpace {
  Real *x, *bias;
  Real* velocity[kMaxStages];
  Stage<Real>* stage;  // [steps][stages]

  ForwardSpace(const Network<Real>& net, int stages, int steps, Keep keep, Arena& arena) {
    x = arena.take<Real>(net.dim * kTile<Real>);
    bias = arena.take<Real>(net.padded[0]);
    for (int s = 0; s < stages; ++s) velocity[s] = arena.take<Real>(net.dim * kTile<Real>);
    stage = arena.take<Stage<Real>>(steps * stages);
    const bool writable = stage != nullptr;
    Stage<Real> shared;
    shared.input = keep == Keep::kNothing ? arena.take<Real>(net.inputs * kTile<Real>) : nullptr;
    for (int l = 0; l < net.hidden; ++l) {
      const auto tile = [&](bool wanted) { return wanted ? arena.take<Real>(net.padded[l] * kTile<Real>) : nullptr; };
      shared.value[l] = tile(keep == Keep::kNothing);
      shared.slope[l] = tile(keep != Keep::kJets);
      shared.curvature[l] = nullptr;
    }
    for (int s = 0; s < steps * stages; ++s) {
      Stage<Real> own = shared;
      if (keep != Keep::kNothing) own.input = arena.take<Real>(net.inputs * kTile<Real>);
      for (int l = 0; l < net.hidden; ++l) {
        const auto tile = [&] { return arena.take<Real>(net.padded[l] * kTile<Real>); };
        if (keep != Keep::kNothing) own.value[l] = tile();
        if (keep == Keep::kJets) own.slope[l] = tile();
        if (keep == Keep::kJets || (keep == Keep::kValues && l == net.hidden - 1)) own.curvature[l] = tile();
      }
      if (writable) stage[s] = own;
    }
  }

  // The same buffers with x elsewhere.
  ForwardSpace at(Real* position) const {
    ForwardSpace moved = *this;
    moved.x = position;
    return moved;
  }
};

// Sums of one thread over its tiles; sums over samples that stay vectors have kLanes columns.
template <class Real>
struct GradientSums {
  int first_columns, last_columns;  // padded to the lanes
  Real *first, *time, *bias[kMaxHidden], *middle = nullptr, *coupling = nullptr, *last, *bias_last, *linear = nullptr;
  Real* begin;
  ptrdiff_t count;

  GradientSums(const Network<Real>& net, Arena& arena)
      : first_columns((net.inputs + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>),
        last_columns((net.dim + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>) {
    const size_t start = arena.used();
    begin = first = arena.take<Real>(net.padded[0] * first_columns);
    time = arena.take<Real>(net.padded[0] * kLanes<Real>);
    for (int l = 0; l < net.hidden; ++l) bias[l] = arena.take<Real>(net.padded[l] * kLanes<Real>);
    last = arena.take<Real>(net.padded[net.hidden - 1] * last_columns);
    bias_last = arena.take<Real>(net.dim * kLanes<Real>);
    if (net.hidden == 2) middle = arena.take<Real>(net.padded[1] * net.padded[0]);
    if (net.exact) {
      coupling = arena.take<Real>(net.padded[0] * (net.hidden == 2 ? net.padded[1] : kLanes<Real>));
    }
    if (net.has_linear) linear = arena.take<Real>(net.dim * first_columns);
    count = static_cast<ptrdiff_t>((arena.used() - start) / sizeof(Real));
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
