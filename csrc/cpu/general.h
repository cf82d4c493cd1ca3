// One stage of one tile where the network is not plain: layers that time and context scale and shift, residual layers.
#pragma once

#include "gates.h"
#include "stage.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Divergence in closed form; what the adjoint needs of it goes into stage.modulated.slope_gradient.
template <class Real, int Vectors, Keep K>
__attribute__((noinline)) void add_general_divergence(const Network<Real>& net, const Stage<Real>& stage,
                                                      const ForwardSpace<Real>& space,
                                                      Vector<Real> (&divergence)[Vectors]) {
  const int top = net.top();
  const auto contribute = [&](int j, ptrdiff_t at, const Vector<Real>& q) {
    divergence[j] += q * load(stage.slope[top] + at);
    if (K == Keep::kJets) store<Real>(stage.modulated.slope_gradient + at, q);
  };
  if (net.hidden == 1) {
    for_each_vector_in<Real, Vectors>(
        net.width[0], [&](int row, int j, ptrdiff_t at) { contribute(j, at, Vector<Real>{} + net.trace_vector[row]); });
    return;
  }
  if (net.residual) {
    for_each_vector_in<Real, Vectors>(net.width[0], [&](int row, int j, ptrdiff_t at) {
      divergence[j] += net.trace_vector[row] * load(stage.slope[0] + at);
    });
  }
  hidden_product<Real, Vectors>(net.trace_matrix, net.padded[1], net.width[0], stage.slope[0], nullptr, space.split,
                                [&](int first_row, auto& acc) {
                                  for_each_vector_of(
                                      first_row, acc,
                                      [&](int, int j, ptrdiff_t at, const Vector<Real>& q) { contribute(j, at, q); });
                                  keep_in_memory(divergence);
                                });
}

// As forward_plain of stage.h.
template <class Real, int Vectors, Keep K>
__attribute__((noinline)) void forward_general(const Network<Real>& net, Real t, const Stage<Real>& stage,
                                               const ForwardSpace<Real>& space, Real* velocity,
                                               Vector<Real> (&divergence)[Vectors]) {
  constexpr bool kAdjoint = K == Keep::kJets;
  const int top = net.top();
  const ModulatedStage<Real>& modulated = stage.modulated;
  // z = scale * a + shift of one vector of a layer's a = W h + b.
  const auto modulate = [&](const Real* scale, bool shifted, Real* affine, ptrdiff_t at, const Vector<Real>& a) {
    if (scale != nullptr && kAdjoint) store<Real>(affine + at, a);
    const Vector<Real> z = scale != nullptr ? load(scale + at) * a : a;
    return shifted ? z + load(space.shift + at) : z;
  };
  const auto activation = [&](int l) {
    const bool shifted = net.modulation.kind.has_shift(l);
    return [&, l, shifted](int first_row, auto& acc) {
      const Real* scale = modulated.scale[l];
      Real* slope = scale != nullptr && kAdjoint ? modulated.slope[l] : stage.slope[l];
      for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& a) {
        store<Real>(stage.value[l] + at, modulate(scale, shifted, modulated.affine[l], at, a));
      });
      const ptrdiff_t first = static_cast<ptrdiff_t>(first_row) * kTile<Real>;
      activate_rows<Real, Vectors, kAdjoint>(net.activation, net.beta, stage.value[l] + first, slope + first,
                                             kAdjoint ? stage.curvature[l] + first : nullptr, kRowsOf<decltype(acc)>);
      for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>&) {
        if (scale != nullptr) store<Real>(stage.slope[l] + at, load(scale + at) * load(slope + at));
        if (net.residual && l > 0) add_to<Real>(stage.value[l] + at, load(stage.value[l - 1] + at));
      });
    };
  };
  if (net.modulated) {
    set_inputs<Real, Vectors>(net, t, stage);
    set_modulation<Real, Vectors>(net, 0, stage, space);
  }
  for (int i = 0; i < net.padded[0]; ++i) space.bias[i] = net.bias[0][i] + t * net.time[i];
  product<Real, Vectors>(net.first, net.padded[0], net.first_inputs, stage.input, space.bias, activation(0));
  for (int l = 1; l <= top; ++l) {
    if (net.modulated) set_modulation<Real, Vectors>(net, l, stage, space);
    hidden_product<Real, Vectors>(net.weights[l], net.padded[l], net.width[l - 1], stage.value[l - 1], net.bias[l],
                                  space.split, activation(l));
  }
  if (net.modulated) set_modulation<Real, Vectors>(net, net.hidden, stage, space);

  for (int j = 0; j < Vectors; ++j) divergence[j] = Vector<Real>{};
  if (net.closed) {
    add_general_divergence<Real, Vectors, K>(net, stage, space, divergence);
  } else if (K == Keep::kNothing) {
    add_tangent_divergence<Real, Vectors, false>(net, stage, space, divergence);
  }

  if (net.has_linear) {
    product_any_rows<Real, Vectors>(net.linear, net.dim, net.dim, stage.input, [&](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc,
                         [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(velocity + at, v); });
    });
  }
  const bool shifted = net.modulation.kind.has_shift(net.hidden);
  product_any_rows<Real, Vectors>(
      net.last, net.dim, net.width[top], stage.value[top], net.bias_last, [&](int first_row, auto& acc) {
        for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& a) {
          const Vector<Real> v = modulate(modulated.scale[net.hidden], shifted, modulated.affine[net.hidden], at, a);
          store<Real>(velocity + at, net.has_linear ? v + load(velocity + at) : v);
        });
      });
}

// As backward_plain of stage.h. With h_bar and slope_bar the gradients of a hidden layer's sigma and of its scaled
// slope,
//   z_bar = sigma' h_bar + scale sigma'' slope_bar,   scale_bar = a z_bar + sigma' slope_bar,   shift_bar = z_bar,
// and that of a = W h + b, which goes where the plain network has its z_bar, is scale z_bar.
template <class Real, int Vectors>
__attribute__((noinline)) void backward_general(const Network<Real>& net, Real t, const Stage<Real>& stage,
                                                const ForwardSpace<Real>& space, BackwardSpace<Real>& work, int index,
                                                const Vector<Real> (&divergence_bar)[Vectors],
                                                Vector<Real> (&divergence)[Vectors], bool parameters) {
  constexpr Keep K = Keep::kJets;
  const int top = net.top(), dim = net.dim;
  const ModulatedStage<Real>& modulated = stage.modulated;
  const ptrdiff_t outputs = static_cast<ptrdiff_t>(index) * dim * kTile<Real>;
  const Real* velocity_bar = work.velocity_bar + outputs;
  Real *output_bar = work.output_bar + outputs, *input_bar = work.input_bar[index];
  GradientSums<Real>& sums = work.sums;
  const auto z_place = [&](int l) {
    return work.z_bar[l] + static_cast<ptrdiff_t>(index) * net.padded[l] * kTile<Real>;
  };

  if (net.modulated) {
    for_each_vector_in<Real, Vectors>(net.modulation.columns,
                                      [&](int, int, ptrdiff_t at) { store<Real>(work.u_bar + at, Vector<Real>{}); });
  }
  for (int i = 0; i < dim; ++i) {
    Vector<Real> sum{};
    for (int j = 0; j < Vectors; ++j) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(i) * kTile<Real> + j * kLanes<Real>;
      const Vector<Real> bar = load(velocity_bar + at);
      if (net.gated_output) {
        store<Real>(output_bar + at, load(modulated.scale[net.hidden] + at) * bar);
        store<Real>(work.gate_bar + at, load(modulated.affine[net.hidden] + at) * bar);
      }
      sum += load(output_bar + at);
    }
    add_to<Real>(sums.bias_last + i * kLanes<Real>, sum);
  }
  backward_tangents<Real, Vectors, K, false>(net, stage, space, work, index, divergence_bar, divergence, parameters);
  if (net.modulated) modulation_adjoint<Real, Vectors>(net, net.hidden, stage, work, velocity_bar, parameters);

  Real* q_bar =
      work.q_bar == nullptr ? nullptr : work.q_bar + static_cast<ptrdiff_t>(index) * net.padded[top] * kTile<Real>;
  // Of hidden layer l, from the gradient of what it hands to the layer above.
  const auto through_layer = [&](int l) {
    return [&, l](int first_row, auto& acc) {
      const Real* scale = modulated.scale[l];
      const Real* raw_slope = scale != nullptr ? modulated.slope[l] : stage.slope[l];
      Real* z = z_place(l);
      for (int i = 0; i < kRowsOf<decltype(acc)>; ++i) {
        const int row = first_row + i;
        Vector<Real> sum{}, trace_sum{};
        JKOFLOW_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          const ptrdiff_t at = static_cast<ptrdiff_t>(row) * kTile<Real> + j * kLanes<Real>;
          Vector<Real> h_bar = acc[i][j];
          if (net.residual && l < top) h_bar += load(work.carried + at);
          if (net.residual && l > 0) store<Real>(work.carried + at, h_bar);
          Vector<Real> slope_bar{};
          if (net.closed && l == top) {
            slope_bar = divergence_bar[j] * load(modulated.slope_gradient + at);
            const Vector<Real> q = divergence_bar[j] * load(stage.slope[top] + at);
            if (q_bar != nullptr) store<Real>(q_bar + at, q);
            if (net.hidden == 1) trace_sum += q;
          } else if (net.closed || net.directions > 0) {
            slope_bar = load(z + at);
          }
          if (net.closed && net.residual && l < top) {
            slope_bar += divergence_bar[j] * net.trace_vector[row];
            trace_sum += divergence_bar[j] * load(stage.slope[0] + at);
          }
          const Vector<Real> slope = load(raw_slope + at), bend = load(stage.curvature[l] + at) * slope_bar;
          if (scale != nullptr) {
            const Vector<Real> factor = load(scale + at), z_bar = slope * h_bar + factor * bend, a_bar = factor * z_bar;
            store<Real>(work.gate_bar + at, load(modulated.affine[l] + at) * z_bar + slope * slope_bar);
            store<Real>(work.shift_bar + at, z_bar);
            store<Real>(z + at, a_bar);
            sum += a_bar;
          } else {
            const Vector<Real> z_bar = slope * h_bar + bend;
            store<Real>(z + at, z_bar);
            sum += z_bar;
          }
        }
        add_to<Real>(sums.bias[l] + row * kLanes<Real>, sum);
        if (l == 0) add_to<Real>(sums.time + row * kLanes<Real>, t * sum);
        if (net.has_trace_vector() && l == 0) add_to<Real>(sums.trace_vector + row * kLanes<Real>, trace_sum);
      }
    };
  };
  const auto end_layer = [&](int l) {
    if (!net.modulated) return;
    modulation_adjoint<Real, Vectors>(net, l, stage, work, modulated.scale[l] != nullptr ? work.shift_bar : z_place(l),
                                      parameters);
  };
  product<Real, Vectors>(net.last_t, net.padded[top], dim, output_bar, through_layer(top));
  end_layer(top);
  if (net.two_layer_form()) {
    hidden_product<Real, Vectors>(
        net.trace_matrix_t, net.padded[0], net.width[1], q_bar, nullptr, space.split, [&](int first_row, auto& acc) {
          for_each_vector_of(first_row, acc,
                             [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(z_place(0) + at, v); });
        });
  }
  for (int l = top - 1; l >= 0; --l) {
    hidden_product<Real, Vectors>(net.weights_t[l + 1], net.padded[l], net.width[l + 1], z_place(l + 1), nullptr,
                                  space.split, through_layer(l));
    end_layer(l);
    if (parameters) {
      transpose_panels<Real, Vectors>(stage.value[l], net.padded[l], index, work.stages, work.value_panels[l]);
      if (work.slope_panels != nullptr) {
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
  product_any_rows<Real, Vectors>(net.first_t, net.first_inputs, net.width[0], z_place(0), write(false));
  if (net.has_linear) product_any_rows<Real, Vectors>(net.linear_t, dim, dim, velocity_bar, write(true));
  if (net.modulated) inputs_adjoint<Real, Vectors>(net, stage, work, input_bar);
}

template <class Real, int Vectors, Keep K>
void forward_stage(const Network<Real>& net, Real t, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                   Real* velocity, Vector<Real> (&divergence)[Vectors]) {
  if constexpr (K != Keep::kValues) {
    if (!net.plain()) return forward_general<Real, Vectors, K>(net, t, stage, space, velocity, divergence);
  }
  forward_plain<Real, Vectors, K>(net, t, stage, space, velocity, divergence);
}

template <class Real, int Vectors, Keep K>
void backward_stage(const Network<Real>& net, Real t, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                    BackwardSpace<Real>& work, int index, const Vector<Real> (&divergence_bar)[Vectors],
                    Vector<Real> (&divergence)[Vectors], bool parameters) {
  if constexpr (K != Keep::kValues) {
    if (!net.plain()) {
      return backward_general<Real, Vectors>(net, t, stage, space, work, index, divergence_bar, divergence, parameters);
    }
  }
  backward_plain<Real, Vectors, K>(net, t, stage, space, work, index, divergence_bar, divergence, parameters);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
