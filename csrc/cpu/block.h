// One tile, one stage: the velocity with its closed-form divergence, and their adjoint.
#pragma once

#include "workspace.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// value holds z and becomes sigma(z); slope and, if wanted, curvature are filled beside it.
template <class Real, int Vectors, bool Curvature, ActivationKind Kind>
JKOFLOW_INLINE void activate_rows_as(Real beta, Real* value, Real* slope, Real* curvature, int rows) {
  for (int i = 0; i < rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) {
      const int at = i * kTile<Real> + j * kLanes<Real>;
      const auto jet = activate<Kind, Math<Real>>(load(value + at), beta);
      store<Real>(value + at, jet.value);
      store<Real>(slope + at, jet.slope);
      if constexpr (Curvature) store<Real>(curvature + at, jet.curvature);
    }
  }
}

template <class Real, int Vectors, bool Curvature>
__attribute__((noinline)) void activate_rows(ActivationKind kind, Real beta, Real* value, Real* slope, Real* curvature,
                                             int rows) {
  switch (kind) {
    case ActivationKind::kTanh:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kTanh>(beta, value, slope, curvature, rows);
    case ActivationKind::kSoftplus:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kSoftplus>(beta, value, slope, curvature, rows);
    case ActivationKind::kSilu:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kSilu>(beta, value, slope, curvature, rows);
  }
}

// One hidden layer: z = weights * input + bias, then the activation on each panel while it is in the L1 cache.
template <class Real, int Vectors, Keep K>
JKOFLOW_INLINE void hidden_layer(const Network<Real>& net, const Real* weights, const Real* bias, int depth,
                                 const Real* input, const Stage<Real>& stage, int l) {
  product<Real, Vectors>(weights, net.padded[l], depth, input, [&](auto rows, int row, auto& acc) {
    Real* value = stage.value[l] + row * kTile<Real>;
    JKOFLOW_UNROLL
    for (int i = 0; i < rows.value; ++i) {
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j)
        store<Real>(value + i * kTile<Real> + j * kLanes<Real>, acc[i][j] + bias[row + i]);
    }
    constexpr bool kCurvature = K == Keep::kJets;
    activate_rows<Real, Vectors, kCurvature>(net.activation, net.beta, value, stage.slope[l] + row * kTile<Real>,
                                             kCurvature ? stage.curvature[l] + row * kTile<Real> : nullptr, rows.value);
  });
}

// Velocity and divergence at stage.input and time t.
template <class Real, int Vectors, Keep K>
void forward_stage(const Network<Real>& net, Real t, const Stage<Real>& stage, Real* bias, Real* velocity,
                   Vector<Real> (&divergence)[Vectors]) {
  const int top = net.hidden - 1;
  for (int i = 0; i < net.padded[0]; ++i) bias[i] = net.bias[0][i] + t * net.time[i];
  hidden_layer<Real, Vectors, K>(net, net.first, bias, net.inputs, stage.input, stage, 0);
  if (net.hidden == 2) {
    hidden_layer<Real, Vectors, K>(net, net.middle, net.bias[1], net.width[0], stage.value[0], stage, 1);
  }

  for (int j = 0; j < Vectors; ++j) divergence[j] = Vector<Real>{};
  // div = sum_i q_i s_i over the last layer's slopes s, with q = M s_1 or the constant c.
  const auto contribute = [&](const Vector<Real>& q, int at, int j) {
    const Vector<Real> slope = load(stage.slope[top] + at);
    divergence[j] += q * slope;
    if constexpr (K == Keep::kJets) store<Real>(stage.curvature[top] + at, load(stage.curvature[top] + at) * q);
    if constexpr (K == Keep::kValues) {
      store<Real>(stage.curvature[top] + at, Real(-2) * load(stage.value[top] + at) * slope * q);
    }
  };
  if (net.exact && net.hidden == 2) {
    product<Real, Vectors>(net.coupling, net.padded[1], net.width[0], stage.slope[0],
                           [&](auto rows, int row, auto& acc) {
                             JKOFLOW_UNROLL
                             for (int i = 0; i < rows.value; ++i) {
                               JKOFLOW_UNROLL
                               for (int j = 0; j < Vectors; ++j) {
                                 contribute(acc[i][j], (row + i) * kTile<Real> + j * kLanes<Real>, j);
                               }
                             }
                           });
  } else if (net.exact) {
    for (int i = 0; i < net.width[0]; ++i) {
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        contribute(Vector<Real>{} + net.coupling[i], i * kTile<Real> + j * kLanes<Real>, j);
      }
    }
  }

  const auto write = [&](const Real* addend) {
    return [&net, velocity, addend](auto rows, int row, auto& acc) {
      JKOFLOW_UNROLL
      for (int i = 0; i < rows.value; ++i) {
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          const int at = (row + i) * kTile<Real> + j * kLanes<Real>;
          const Vector<Real> v = acc[i][j] + net.bias_last[row + i];
          store<Real>(velocity + at, addend == nullptr ? v : v + load(addend + at));
        }
      }
    };
  };
  if (net.has_linear) {
    product_any_rows<Real, Vectors>(net.linear, net.dim, net.dim, stage.input, [&](auto rows, int row, auto& acc) {
      JKOFLOW_UNROLL
      for (int i = 0; i < rows.value; ++i) {
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          store<Real>(velocity + (row + i) * kTile<Real> + j * kLanes<Real>, acc[i][j]);
        }
      }
    });
  }
  product_any_rows<Real, Vectors>(net.last, net.dim, net.width[top], stage.value[top],
                                  write(net.has_linear ? velocity : nullptr));
}

// Buffers of the adjoint of one Runge-Kutta step: all stages lie side by side, for one weight-gradient product a step.
template <class Real>
struct BackwardSpace {
  int stages;
  Real *x_bar, *context_bar;
  Real* velocity_bar;                         // [stages][dim][kTile]
  Real* input_bar[kMaxStages];                // [inputs][kTile]
  Real *z_bar[kMaxHidden], *q_bar = nullptr;  // [stages][width][kTile]
  Real *input_panels, *velocity_bar_panels;   // right operands of outer_product
  Real *value_panels = nullptr, *slope_panels = nullptr;
  Real* panels_end;
  GradientSums<Real> sums;

  BackwardSpace(const Network<Real>& net, int stages_, Arena& arena) : stages(stages_), sums(net, arena) {
    const ptrdiff_t tile = kTile<Real>;
    x_bar = arena.take<Real>(net.dim * tile);
    context_bar = arena.take<Real>((net.inputs - net.dim) * tile);
    velocity_bar = arena.take<Real>(stages * net.dim * tile);
    for (int s = 0; s < stages; ++s) input_bar[s] = arena.take<Real>(net.inputs * tile);
    for (int l = 0; l < net.hidden; ++l) z_bar[l] = arena.take<Real>(stages * net.padded[l] * tile);
    if (net.hidden == 2 && net.exact) q_bar = arena.take<Real>(stages * net.padded[1] * tile);
    input_panels = arena.take<Real>(stages * sums.first_columns * tile);
    velocity_bar_panels = arena.take<Real>(stages * sums.last_columns * tile);
    if (net.hidden == 2) value_panels = arena.take<Real>(stages * net.padded[0] * tile);
    if (net.hidden == 2 && net.exact) slope_panels = arena.take<Real>(stages * net.padded[0] * tile);
    panels_end = arena.take<Real>(0);
  }

  // The sums start at zero. So do the panels: columns and samples that no tile fills are multiplied all the same, and
  // what an earlier call left there may be denormal or NaN, which is slow.
  void clear() const {
    clear_pieces(sums.begin, sums.count);
    clear_pieces(input_panels, panels_end - input_panels);
  }
};

// sigma' of a kept stage.
template <class Real, Keep K>
JKOFLOW_INLINE Vector<Real> kept_slope(const Stage<Real>& stage, int l, int at) {
  if constexpr (K == Keep::kJets) {
    return load(stage.slope[l] + at);
  } else {
    const Vector<Real> h = load(stage.value[l] + at);
    return Real(1) - h * h;
  }
}

// sigma'' of a kept stage, for a layer below the last.
template <class Real, Keep K>
JKOFLOW_INLINE Vector<Real> kept_curvature(const Stage<Real>& stage, int l, int at) {
  if constexpr (K == Keep::kJets) {
    return load(stage.curvature[l] + at);
  } else {
    const Vector<Real> h = load(stage.value[l] + at);
    return Real(-2) * h * (Real(1) - h * h);
  }
}

// Adjoint of forward_stage: from the cotangents of velocity (work.velocity_bar of this stage) and divergence to that of
// the input, with z_bar and the panels left for the weight gradients.
template <class Real, int Vectors, Keep K>
void backward_stage(const Network<Real>& net, Real t, const Stage<Real>& stage, BackwardSpace<Real>& work, int index,
                    const Vector<Real> (&divergence_bar)[Vectors], bool parameters) {
  const int top = net.hidden - 1;
  const Real* velocity_bar = work.velocity_bar + static_cast<ptrdiff_t>(index) * net.dim * kTile<Real>;
  Real* input_bar = work.input_bar[index];
  GradientSums<Real>& sums = work.sums;
  const auto z_bar = [&](int l) { return work.z_bar[l] + static_cast<ptrdiff_t>(index) * net.padded[l] * kTile<Real>; };
  const auto add_bias = [&](int l, int row, const Vector<Real>& sum) {
    add_to<Real>(sums.bias[l] + row * kLanes<Real>, sum);
    if (l == 0) add_to<Real>(sums.time + row * kLanes<Real>, t * sum);
  };

  for (int i = 0; i < net.dim; ++i) {
    Vector<Real> sum{};
    for (int j = 0; j < Vectors; ++j) sum += load(velocity_bar + i * kTile<Real> + j * kLanes<Real>);
    add_to<Real>(sums.bias_last + i * kLanes<Real>, sum);
  }

  // Last hidden layer: z_bar = s * (W^T v_bar) + div_bar * (sigma'' q).
  Real* z_top = z_bar(top);
  Real* q_bar =
      work.q_bar == nullptr ? nullptr : work.q_bar + static_cast<ptrdiff_t>(index) * net.padded[top] * kTile<Real>;
  product<Real, Vectors>(net.last_t, net.padded[top], net.dim, velocity_bar, [&](auto rows, int row, auto& acc) {
    for (int i = 0; i < rows.value; ++i) {
      Vector<Real> sum{}, coupling_sum{};
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        const int at = (row + i) * kTile<Real> + j * kLanes<Real>;
        const Vector<Real> slope = kept_slope<Real, K>(stage, top, at);
        Vector<Real> z = slope * acc[i][j];
        if (net.exact) {
          z += divergence_bar[j] * load(stage.curvature[top] + at);
          const Vector<Real> q = divergence_bar[j] * slope;
          if (q_bar != nullptr) store<Real>(q_bar + at, q);
          coupling_sum += q;
        }
        store<Real>(z_top + at, z);
        sum += z;
      }
      add_bias(top, row + i, sum);
      if (net.exact && net.hidden == 1) add_to<Real>(sums.coupling + (row + i) * kLanes<Real>, coupling_sum);
    }
  });

  if (net.hidden == 2) {
    // z1_bar = s1 * (W2^T z2_bar) + sigma''_1 * (M^T q_bar).
    Real* z = z_bar(0);
    if (net.exact) {
      product<Real, Vectors>(net.coupling_t, net.padded[0], net.width[1], q_bar, [&](auto rows, int row, auto& acc) {
        JKOFLOW_UNROLL
        for (int i = 0; i < rows.value; ++i) {
          JKOFLOW_UNROLL
          for (int j = 0; j < Vectors; ++j) {
            const int at = (row + i) * kTile<Real> + j * kLanes<Real>;
            store<Real>(z + at, kept_curvature<Real, K>(stage, 0, at) * acc[i][j]);
          }
        }
      });
    }
    product<Real, Vectors>(net.middle_t, net.padded[0], net.width[1], z_top, [&](auto rows, int row, auto& acc) {
      JKOFLOW_UNROLL
      for (int i = 0; i < rows.value; ++i) {
        Vector<Real> sum{};
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          const int at = (row + i) * kTile<Real> + j * kLanes<Real>;
          Vector<Real> total = kept_slope<Real, K>(stage, 0, at) * acc[i][j];
          if (net.exact) total += load(z + at);
          store<Real>(z + at, total);
          sum += total;
        }
        add_bias(0, row + i, sum);
      }
    });
    if (parameters) {
      transpose_panels<Real, Vectors>(stage.value[0], net.padded[0], index, work.stages, work.value_panels);
      if (net.exact && K == Keep::kJets) {
        transpose_panels<Real, Vectors>(stage.slope[0], net.padded[0], index, work.stages, work.slope_panels);
      }
    }
  }
  if (parameters) {
    constexpr int kSamples = Vectors * kLanes<Real>;
    scatter_panels<Real>(stage.input, net.inputs, sums.first_columns, index, work.stages, kSamples, work.input_panels);
    scatter_panels<Real>(velocity_bar, net.dim, sums.last_columns, index, work.stages, kSamples,
                         work.velocity_bar_panels);
  }

  const auto write = [&](bool add) {
    return [input_bar, add](auto rows, int row, auto& acc) {
      JKOFLOW_UNROLL
      for (int i = 0; i < rows.value; ++i) {
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          Real* out = input_bar + (row + i) * kTile<Real> + j * kLanes<Real>;
          store<Real>(out, add ? acc[i][j] + load(out) : acc[i][j]);
        }
      }
    };
  };
  product_any_rows<Real, Vectors>(net.first_t, net.inputs, net.width[0], z_bar(0), write(false));
  if (net.has_linear) product_any_rows<Real, Vectors>(net.linear_t, net.dim, net.dim, velocity_bar, write(true));
}

// Gradients of the weights over the stages of one step, added to work.sums.
template <class Real, Keep K>
void accumulate_weights(const Network<Real>& net, const Stage<Real>* stage, BackwardSpace<Real>& work, int samples) {
  const int top = net.hidden - 1;
  GradientSums<Real>& sums = work.sums;
  const auto add = [&](const Real* left, ptrdiff_t stage_stride, int rows, const Real* right, int columns,
                       Real* gradient) {
    outer_product<Real>(left, stage_stride, rows, work.stages, samples, right, columns, gradient);
  };
  const auto tile = [&](int l) { return static_cast<ptrdiff_t>(net.padded[l]) * kTile<Real>; };
  add(work.z_bar[0], tile(0), net.padded[0], work.input_panels, sums.first_columns, sums.first);
  if (net.hidden == 2) {
    if (net.exact && K == Keep::kValues) {
      for (ptrdiff_t at = 0; at < work.stages * tile(0); at += kLanes<Real>) {
        const Vector<Real> h = load(work.value_panels + at);
        store<Real>(work.slope_panels + at, Real(1) - h * h);
      }
    }
    add(work.z_bar[1], tile(1), net.padded[1], work.value_panels, net.padded[0], sums.middle);
    if (net.exact) add(work.q_bar, tile(1), net.padded[1], work.slope_panels, net.padded[0], sums.coupling);
  }
  // The last layer as (width, dim), the long side as rows; the stages' buffers are equally spaced.
  const ptrdiff_t spacing = work.stages > 1 ? stage[1].value[top] - stage[0].value[top] : 0;
  add(stage[0].value[top], spacing, net.padded[top], work.velocity_bar_panels, sums.last_columns, sums.last);
  if (net.has_linear) {
    add(work.velocity_bar, static_cast<ptrdiff_t>(net.dim) * kTile<Real>, net.dim, work.input_panels,
        sums.first_columns, sums.linear);
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
