// One stage of one tile of a plain network: the velocity with its divergence, and their adjoint.
#pragma once

#include "functions.h"
#include "tangent.h"

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
    case ActivationKind::kElu:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kElu>(beta, value, slope, curvature, rows);
    case ActivationKind::kSelu:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kSelu>(beta, value, slope, curvature, rows);
    case ActivationKind::kGelu:
      return activate_rows_as<Real, Vectors, Curvature, ActivationKind::kGelu>(beta, value, slope, curvature, rows);
  }
}

// Adds the closed form, sum_i q_i s_i over the last layer's slopes s, with q = M s_1 or the constant c. Not inlined:
// its product would get too few registers.
template <class Real, int Vectors, Keep K>
__attribute__((noinline)) void add_closed_divergence(const Network<Real>& net, const Stage<Real>& stage,
                                                     const ForwardSpace<Real>& space,
                                                     Vector<Real> (&divergence)[Vectors]) {
  const int top = net.top();
  const auto contribute = [&](int j, ptrdiff_t at, const Vector<Real>& q) {
    const Vector<Real> slope = load(stage.slope[top] + at);
    divergence[j] += q * slope;
    if constexpr (K == Keep::kJets) store<Real>(stage.curvature[top] + at, load(stage.curvature[top] + at) * q);
    if constexpr (K == Keep::kValues) {
      store<Real>(stage.curvature[top] + at, Real(-2) * load(stage.value[top] + at) * slope * q);
    }
  };
  if (net.hidden == 1) {
    for_each_vector_in<Real, Vectors>(
        net.width[0], [&](int row, int j, ptrdiff_t at) { contribute(j, at, Vector<Real>{} + net.trace_vector[row]); });
    return;
  }
  const auto contribute_panel = [&](int first_row, auto& acc) {
    for_each_vector_of(first_row, acc, [&](int, int j, ptrdiff_t at, const Vector<Real>& q) { contribute(j, at, q); });
    keep_in_memory(divergence);
  };
  hidden_product<Real, Vectors>(net.trace_matrix, net.padded[1], net.width[0], stage.slope[0], nullptr, space.split,
                                contribute_panel);
}

// Velocity and divergence at stage.input and time t. Tangents wait for the adjoint, if there will be one: then the
// divergence is zero here.
template <class Real, int Vectors, Keep K>
void forward_plain(const Network<Real>& net, Real t, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                   Real* velocity, Vector<Real> (&divergence)[Vectors]) {
  const int top = net.top();
  // Of a hidden layer: the activation on each panel of z while it is in the L1 cache.
  const auto activation = [&](int l) {
    return [&net, &stage, l](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc,
                         [&](int, int, ptrdiff_t at, const Vector<Real>& z) { store<Real>(stage.value[l] + at, z); });
      constexpr bool kCurvature = K == Keep::kJets;
      const ptrdiff_t first = static_cast<ptrdiff_t>(first_row) * kTile<Real>;
      activate_rows<Real, Vectors, kCurvature>(net.activation, net.beta, stage.value[l] + first, stage.slope[l] + first,
                                               kCurvature ? stage.curvature[l] + first : nullptr,
                                               kRowsOf<decltype(acc)>);
    };
  };
  for (int i = 0; i < net.padded[0]; ++i) space.bias[i] = net.bias[0][i] + t * net.time[i];
  product<Real, Vectors>(net.first, net.padded[0], net.inputs, stage.input, space.bias, activation(0));
  for (int l = 1; l <= top; ++l) {
    hidden_product<Real, Vectors>(net.weights[l], net.padded[l], net.width[l - 1], stage.value[l - 1], net.bias[l],
                                  space.split, activation(l));
  }

  for (int j = 0; j < Vectors; ++j) divergence[j] = Vector<Real>{};
  if (net.closed) {
    add_closed_divergence<Real, Vectors, K>(net, stage, space, divergence);
  } else if (K == Keep::kNothing) {
    add_tangent_divergence<Real, Vectors, true>(net, stage, space, divergence);
  }

  if (net.has_linear) {
    product_any_rows<Real, Vectors>(net.linear, net.dim, net.dim, stage.input, [&](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc,
                         [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(velocity + at, v); });
    });
  }
  product_any_rows<Real, Vectors>(
      net.last, net.dim, net.width[top], stage.value[top], net.bias_last, [&](int first_row, auto& acc) {
        for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& v) {
          store<Real>(velocity + at, net.has_linear ? v + load(velocity + at) : v);
        });
      });
}

// Adjoint of forward_plain: from the cotangents of velocity (work.velocity_bar of this stage) and divergence to that of
// the input, with z_bar and the panels left for the weight gradients. Adds to `divergence` what forward_plain left out.
template <class Real, int Vectors, Keep K>
void backward_plain(const Network<Real>& net, Real t, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                    BackwardSpace<Real>& work, int index, const Vector<Real> (&divergence_bar)[Vectors],
                    Vector<Real> (&divergence)[Vectors], bool parameters) {
  const int top = net.top();
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
  backward_tangents<Real, Vectors, K, true>(net, stage, space, work, index, divergence_bar, divergence, parameters);

  // Last hidden layer: z_bar = s * (W^T v_bar) + sigma'' * (gradient of s), the latter being div_bar * q in closed
  // form.
  Real* z_top = z_bar(top);
  Real* q_bar =
      work.q_bar == nullptr ? nullptr : work.q_bar + static_cast<ptrdiff_t>(index) * net.padded[top] * kTile<Real>;
  product<Real, Vectors>(net.last_t, net.padded[top], net.dim, velocity_bar, [&](int first_row, auto& acc) {
    for (int i = 0; i < kRowsOf<decltype(acc)>; ++i) {
      const int row = first_row + i;
      Vector<Real> sum{}, trace_sum{};
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(row) * kTile<Real> + j * kLanes<Real>;
        const Vector<Real> slope = slope_of<Real, K>(stage, top, at);
        Vector<Real> z = slope * acc[i][j];
        if (net.closed) {
          z += divergence_bar[j] * load(stage.curvature[top] + at);
          const Vector<Real> q = divergence_bar[j] * slope;
          if (q_bar != nullptr) store<Real>(q_bar + at, q);
          trace_sum += q;
        } else if (net.directions > 0) {
          z += curvature_of<Real, K>(stage, top, at) * load(z_top + at);
        }
        store<Real>(z_top + at, z);
        sum += z;
      }
      add_bias(top, row, sum);
      if (net.closed && net.hidden == 1) add_to<Real>(sums.trace_vector + row * kLanes<Real>, trace_sum);
    }
  });

  // The layers below: z_bar = s * (W^T z_bar above) + sigma'' * (gradient of s), which lies in z_bar's place.
  if (net.two_layer_form()) {
    hidden_product<Real, Vectors>(
        net.trace_matrix_t, net.padded[0], net.width[1], q_bar, nullptr, space.split, [&](int first_row, auto& acc) {
          for_each_vector_of(first_row, acc,
                             [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(z_bar(0) + at, v); });
        });
  }
  for (int l = top - 1; l >= 0; --l) {
    Real* z = z_bar(l);
    hidden_product<Real, Vectors>(net.weights_t[l + 1], net.padded[l], net.width[l + 1], z_bar(l + 1), nullptr,
                                  space.split, [&](int first_row, auto& acc) {
                                    JKOFLOW_UNROLL
                                    for (int i = 0; i < kRowsOf<decltype(acc)>; ++i) {
                                      Vector<Real> sum{};
                                      JKOFLOW_UNROLL
                                      for (int j = 0; j < Vectors; ++j) {
                                        const ptrdiff_t at =
                                            static_cast<ptrdiff_t>(first_row + i) * kTile<Real> + j * kLanes<Real>;
                                        Vector<Real> total = slope_of<Real, K>(stage, l, at) * acc[i][j];
                                        if (net.closed || net.directions > 0) {
                                          total += curvature_of<Real, K>(stage, l, at) * load(z + at);
                                        }
                                        store<Real>(z + at, total);
                                        sum += total;
                                      }
                                      add_bias(l, first_row + i, sum);
                                    }
                                  });
    if (parameters) {
      transpose_panels<Real, Vectors>(stage.value[l], net.padded[l], index, work.stages, work.value_panels[l]);
      if (work.slope_panels != nullptr && K == Keep::kJets) {
        transpose_panels<Real, Vectors>(stage.slope[l], net.padded[l], index, work.stages, work.slope_panels);
      }
    }
  }
  const auto write = [&](bool add) {
    return [input_bar, add](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& v) {
        store<Real>(input_bar + at, add ? v + load(input_bar + at) : v);
      });
    };
  };
  product_any_rows<Real, Vectors>(net.first_t, net.inputs, net.width[0], z_bar(0), write(false));
  if (net.has_linear) product_any_rows<Real, Vectors>(net.linear_t, net.dim, net.dim, velocity_bar, write(true));
}

// Gradients of the weights over the stages of one step, added to work.sums.
template <class Real, int Vectors, Keep K>
void accumulate_weights(const Network<Real>& net, const Stage<Real>* stage, BackwardSpace<Real>& work) {
  const int top = net.top(), stages = work.stages;
  constexpr int kSamples = Vectors * kLanes<Real>;
  GradientSums<Real>& sums = work.sums;
  const auto tile = [&](int l) { return static_cast<ptrdiff_t>(net.padded[l]) * kTile<Real>; };
  for (int l = 1; l <= top; ++l) {
    outer_product<Real>(work.z_bar[l], tile(l), net.padded[l], stages, kSamples, work.value_panels[l - 1],
                        net.padded[l - 1], sums.weights[l]);
  }
  if (net.two_layer_form()) {
    if (K == Keep::kValues) {
      for (ptrdiff_t at = 0; at < stages * tile(0); at += kLanes<Real>) {
        const Vector<Real> h = load(work.value_panels[0] + at);
        store<Real>(work.slope_panels + at, Real(1) - h * h);
      }
    }
    outer_product<Real>(work.q_bar, tile(1), net.padded[1], stages, kSamples, work.slope_panels, net.padded[0],
                        sums.trace_matrix);
  }
  // The stages' buffers are equally spaced. The last layer goes as (width, dim), the long side as rows.
  const ptrdiff_t input_spacing = stages > 1 ? stage[1].input - stage[0].input : 0;
  const ptrdiff_t value_spacing = stages > 1 ? stage[1].value[top] - stage[0].value[top] : 0;
  const ptrdiff_t output_spacing = static_cast<ptrdiff_t>(net.dim) * kTile<Real>;
  narrow_product<Real, Vectors>(work.z_bar[0], tile(0), net.padded[0], stage[0].input, input_spacing, net.first_inputs,
                                stages, work.narrow_panels, sums.weights[0]);
  if (net.has_linear) {
    narrow_product<Real, Vectors>(work.velocity_bar, output_spacing, net.dim, stage[0].input, input_spacing,
                                  net.first_inputs, stages, work.narrow_panels, sums.linear);
  }
  narrow_product<Real, Vectors>(stage[0].value[top], value_spacing, net.padded[top], work.output_bar, output_spacing,
                                net.dim, stages, work.narrow_panels, sums.last);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
