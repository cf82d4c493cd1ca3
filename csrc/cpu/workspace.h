// Buffers of each thread's tile. Sizes and pointers come from one code path.
#pragma once

#include "network.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// What a stage leaves behind for its adjoint.
enum class Keep {
  kNothing,  // buffers may be shared by all stages
  kValues,   // tanh: its derivatives follow from its values
  kJets,     // sigma, sigma' and sigma'' of every hidden layer
};

template <class Real>
Keep keep_for_adjoint(const Network<Real>& net) {
  return net.activation == ActivationKind::kTanh && net.plain() ? Keep::kValues : Keep::kJets;
}

// One stage: its input and, per hidden layer, sigma, sigma' and sigma'' as [width][kTile].
// After a closed-form divergence, the last layer's sigma'' holds sigma'' times the derivative of the divergence by its
// slope. Where the network is not plain, value is what the next layer reads, and slope its derivative by W h + b.
template <class Real>
struct Stage {
  Real* input;
  Real *value[kMaxHidden], *slope[kMaxHidden], *curvature[kMaxHidden];
  ModulatedStage<Real> modulated;
};

// sigma' of a stage.
template <class Real, Keep K>
JKOFLOW_INLINE Vector<Real> slope_of(const Stage<Real>& stage, int l, ptrdiff_t at) {
  if constexpr (K != Keep::kValues) {
    return load(stage.slope[l] + at);
  } else {
    const Vector<Real> h = load(stage.value[l] + at);
    return Real(1) - h * h;
  }
}

// sigma'' of a kept stage.
template <class Real, Keep K>
JKOFLOW_INLINE Vector<Real> curvature_of(const Stage<Real>& stage, int l, ptrdiff_t at) {
  if constexpr (K == Keep::kJets) {
    return load(stage.curvature[l] + at);
  } else {
    const Vector<Real> h = load(stage.value[l] + at);
    return Real(-2) * h * (Real(1) - h * h);
  }
}

// The tangent of one direction v while it is carried through the hidden layers: a_1 = W1x v, u_l = sigma'_l * a_l,
// a_(l+1) = W_(l+1) u_l, and w . u_L is its share of the divergence, where w = v^T W_last.
template <class Real>
struct Tangent {
  Real* ahead[kMaxHidden] = {};                                 // a_l from the second layer on, [width][kTile]
  Real* behind[2] = {};                                         // u_l of two consecutive layers
  Real *noise = nullptr, *seed = nullptr, *weighing = nullptr;  // a direction of its own for each sample: v, a_1, w
  Real* scaled_noise = nullptr;                                 // v times the scale of the output

  Tangent(const Network<Real>& net, Arena& arena) {
    if (net.directions == 0) return;
    const auto tile = [&](int rows) { return arena.take<Real>(static_cast<ptrdiff_t>(rows) * kTile<Real>); };
    for (int l = 1; l < net.hidden; ++l) ahead[l] = tile(net.padded[l]);
    for (Real*& u : behind) u = tile(net.widest());
    if (!net.probed) return;
    noise = tile(net.inputs);
    seed = tile(net.padded[0]);
    weighing = tile(net.padded[net.top()]);
    if (net.gated_output) scaled_noise = tile(net.dim);
  }
};

// Buffers to carry a tile through Runge-Kutta steps, with the stages of `steps` steps kept.
template <class Real>
struct ForwardSpace {
  Real *x, *x_rest, *bias;  // x_rest: what rounding cuts off x, of a tile that is carried from step to step
  Real* velocity[kMaxStages];
  Tangent<Real> tangent;
  SplitSpace<Real> split;
  Real* shift = nullptr;  // S u of a layer
  Stage<Real>* stage;     // [steps][stages]

  ForwardSpace(const Network<Real>& net, int stages, int steps, Keep keep, Arena& arena)
      : x(arena.take<Real>(net.dim * kTile<Real>)),
        x_rest(arena.take<Real>(net.dim * kTile<Real>)),
        bias(arena.take<Real>(net.padded[0])),
        tangent(net, arena),
        split(net.widest(), arena) {
    for (int s = 0; s < stages; ++s) velocity[s] = arena.take<Real>(net.dim * kTile<Real>);
    if (net.modulated) shift = arena.take<Real>(net.widest_layer() * kTile<Real>);
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
    if (keep == Keep::kNothing) take_modulated(net, false, shared.modulated, arena);
    for (int s = 0; s < steps * stages; ++s) {
      Stage<Real> own = shared;
      if (keep != Keep::kNothing) own.input = arena.take<Real>(net.inputs * kTile<Real>);
      for (int l = 0; l < net.hidden; ++l) {
        const auto tile = [&] { return arena.take<Real>(net.padded[l] * kTile<Real>); };
        if (keep != Keep::kNothing) own.value[l] = tile();
        if (keep == Keep::kJets) own.slope[l] = tile();
        if (keep == Keep::kJets || (keep == Keep::kValues && net.closed && l == net.top())) own.curvature[l] = tile();
      }
      if (keep != Keep::kNothing) take_modulated(net, true, own.modulated, arena);
      if (writable) stage[s] = own;
    }
  }

  static void take_modulated(const Network<Real>& net, bool adjoint, ModulatedStage<Real>& stage, Arena& arena) {
    const auto tile = [&](int rows) { return arena.take<Real>(static_cast<ptrdiff_t>(rows) * kTile<Real>); };
    if (adjoint && net.closed && !net.plain()) stage.slope_gradient = tile(net.padded[net.top()]);
    if (!net.modulated) return;
    stage.u = tile(net.modulation.columns);
    for (int l = 0; l <= net.hidden; ++l) {
      if (!net.modulation.kind.has_gate(l)) continue;
      stage.scale[l] = tile(net.rows(l));
      if (adjoint) stage.affine[l] = tile(net.rows(l));
      if (adjoint && l < net.hidden) stage.slope[l] = tile(net.rows(l));
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
  int first_stride, last_stride;  // of the narrow gradients: those of layer 1's inputs, and of the outputs
  Real* weights[kMaxHidden];      // (padded, first_stride), then (padded, padded of the layer before)
  Real *time, *bias[kMaxHidden], *last, *bias_last, *linear = nullptr;
  Real *trace_vector = nullptr, *trace_matrix = nullptr;
  Real *first_tangent = nullptr, *last_tangent = nullptr;  // of W1x and W_last by tangents, (dim, padded, kLanes)
  Real* begin;
  ModulationSums<Real> modulation;
  ptrdiff_t count;

  GradientSums(const Network<Real>& net, Arena& arena) : GradientSums(net, arena, arena.used()) {}

  int columns(const Network<Real>& net, int layer) const { return layer == 0 ? first_stride : net.padded[layer - 1]; }

 private:
  GradientSums(const Network<Real>& net, Arena& arena, size_t start)
      : first_stride(narrow_stride<Real>(net.first_inputs)),
        last_stride(narrow_stride<Real>(net.dim)),
        begin(arena.take<Real>(0)),
        modulation(net.modulation, net.padded, net.hidden, net.dim, arena) {
    for (int l = 0; l < net.hidden; ++l) {
      weights[l] = arena.take<Real>(static_cast<ptrdiff_t>(net.padded[l]) * columns(net, l));
      bias[l] = arena.take<Real>(net.padded[l] * kLanes<Real>);
    }
    time = arena.take<Real>(net.padded[0] * kLanes<Real>);
    last = arena.take<Real>(net.padded[net.top()] * last_stride);
    bias_last = arena.take<Real>(net.dim * kLanes<Real>);
    if (net.has_trace_vector()) trace_vector = arena.take<Real>(net.padded[0] * kLanes<Real>);
    if (net.two_layer_form()) trace_matrix = arena.take<Real>(static_cast<ptrdiff_t>(net.padded[0]) * net.padded[1]);
    if (net.has_linear) linear = arena.take<Real>(net.dim * first_stride);
    if (net.directions > 0 && !net.probed) {
      first_tangent = arena.take<Real>(static_cast<ptrdiff_t>(net.dim) * net.padded[0] * kLanes<Real>);
      last_tangent = arena.take<Real>(static_cast<ptrdiff_t>(net.dim) * net.padded[net.top()] * kLanes<Real>);
    }
    count = static_cast<ptrdiff_t>((arena.used() - start) / sizeof(Real));
  }
};

// Adjoint of a Tangent, with what the weight gradients of the hidden layers need of as many tangents as a step has
// stages: those of one outer product.
template <class Real>
struct TangentAdjoint {
  Real* bar[kMaxHidden] = {};     // of a_l, [stages][width][kTile]; of a_1 only one
  Real* panels[kMaxHidden] = {};  // u_(l-1), right operands of outer_product
  Real *seed_bar = nullptr,
       *weighing_bar = nullptr;  // of a_1 and w, where each sample has its direction: sums over stages
  Real* carried = nullptr;       // of u_l on its way past a residual layer

  TangentAdjoint(const Network<Real>& net, int stages, Arena& arena) {
    if (net.directions == 0) return;
    for (int l = 0; l < net.hidden; ++l) {
      bar[l] = arena.take<Real>(static_cast<ptrdiff_t>(l == 0 ? 1 : stages) * net.padded[l] * kTile<Real>);
    }
    if (net.residual) carried = arena.take<Real>(net.widest() * kTile<Real>);
    if (net.probed) {
      seed_bar = arena.take<Real>(net.padded[0] * kTile<Real>);
      weighing_bar = arena.take<Real>(net.padded[net.top()] * kTile<Real>);
    }
  }

  void take_panels(const Network<Real>& net, int stages, Arena& arena) {
    for (int l = 1; net.directions > 0 && l < net.hidden; ++l) {
      panels[l] = arena.take<Real>(static_cast<ptrdiff_t>(stages) * net.padded[l - 1] * kTile<Real>);
    }
  }
};

// Buffers of the adjoint of one Runge-Kutta step: all stages lie side by side, for one weight-gradient product a step.
template <class Real>
struct BackwardSpace {
  int stages;
  Real *x_bar, *context_bar;
  Real* velocity_bar;                         // [stages][dim][kTile]
  Real* output_bar;                           // the same of W h + b, which is the velocity unless it is scaled
  Real* input_bar[kMaxStages];                // [inputs][kTile]
  Real *z_bar[kMaxHidden], *q_bar = nullptr;  // [stages][width][kTile]
  TangentAdjoint<Real> tangent;
  Real *gate_bar = nullptr, *shift_bar = nullptr, *u_bar = nullptr;  // of one layer; of u
  Real* carried = nullptr;                                           // of h on its way past a residual layer
  Real* narrow_panels;                                               // right operands of outer_product
  Real *value_panels[kMaxHidden] = {}, *slope_panels = nullptr;
  Real* panels_end;
  GradientSums<Real> sums;

  // Without `ends` there is no room for the cotangents of x and the context, of which a step needs one.
  BackwardSpace(const Network<Real>& net, int stages_, Arena& arena, bool ends = true)
      : stages(stages_), tangent(net, stages_, arena), sums(net, arena) {
    const ptrdiff_t tile = kTile<Real>;
    x_bar = arena.take<Real>(ends ? net.dim * tile : 0);
    context_bar = arena.take<Real>(ends ? (net.inputs - net.dim) * tile : 0);
    velocity_bar = arena.take<Real>(stages * net.dim * tile);
    output_bar = net.gated_output ? arena.take<Real>(stages * net.dim * tile) : velocity_bar;
    if (net.modulated) {
      gate_bar = arena.take<Real>(net.widest_layer() * tile);
      shift_bar = arena.take<Real>(net.widest_layer() * tile);
      u_bar = arena.take<Real>(net.modulation.columns * tile);
    }
    if (net.residual) carried = arena.take<Real>(net.widest() * tile);
    for (int s = 0; s < stages; ++s) input_bar[s] = arena.take<Real>(net.inputs * tile);
    for (int l = 0; l < net.hidden; ++l) z_bar[l] = arena.take<Real>(stages * net.padded[l] * tile);
    if (net.two_layer_form()) q_bar = arena.take<Real>(stages * net.padded[1] * tile);
    int columns = larger(sums.first_stride, sums.last_stride);
    if (net.modulated) columns = larger(columns, narrow_stride<Real>(net.modulation.columns));
    narrow_panels = arena.take<Real>(stages * columns * tile);
    for (int l = 0; l < net.top(); ++l) value_panels[l] = arena.take<Real>(stages * net.padded[l] * tile);
    if (net.two_layer_form()) slope_panels = arena.take<Real>(stages * net.padded[0] * tile);
    tangent.take_panels(net, stages, arena);
    panels_end = arena.take<Real>(0);
  }

  // The sums start at zero. So do the panels: columns and samples that no tile fills are multiplied all the same, and
  // what an earlier call left there may be denormal or NaN, which is slow.
  void clear() const {
    clear_pieces(sums.begin, sums.count);
    clear_pieces(narrow_panels, panels_end - narrow_panels);
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
