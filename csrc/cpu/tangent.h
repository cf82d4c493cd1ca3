// The divergence by tangents, for networks without a closed form and for Hutchinson's estimate: one direction through
// the hidden layers of a stage, and its adjoint. No tangent is kept: the adjoint carries each direction forth and back.
#pragma once

#include "workspace.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// a_1 and w of one direction at one row: the same for all samples, or each its own.
template <class Real>
struct Direction {
  const Real *first = nullptr, *last = nullptr;     // rows of W1x transposed and W_last
  const Real *seed = nullptr, *weighing = nullptr;  // tiles

  Direction(const Network<Real>& net, const Tangent<Real>& tangent, int k) {
    if (net.probed) {
      seed = tangent.seed;
      weighing = tangent.weighing;
    } else {
      first = net.first_columns + static_cast<ptrdiff_t>(k) * net.padded[0];
      last = net.last_rows + static_cast<ptrdiff_t>(k) * net.padded[net.top()];
    }
  }
  JKOFLOW_INLINE Vector<Real> start(int row, ptrdiff_t at) const {
    return first != nullptr ? Vector<Real>{} + first[row] : load(seed + at);
  }
  JKOFLOW_INLINE Vector<Real> weight(int row, ptrdiff_t at) const {
    return last != nullptr ? Vector<Real>{} + last[row] : load(weighing + at);
  }
};

// a_1 = W1x v and w = v^T W_last of the noise in tangent.noise: once a tile.
template <class Real, int Vectors>
void start_probe(const Network<Real>& net, const Tangent<Real>& tangent) {
  const auto keep = [](Real* out) {
    return [out](int first_row, auto& acc) {
      for_each_vector_of(first_row, acc,
                         [&](int, int, ptrdiff_t at, const Vector<Real>& v) { store<Real>(out + at, v); });
    };
  };
  product<Real, Vectors>(net.first, net.padded[0], net.first_inputs, tangent.noise, keep(tangent.seed));
  if (net.gated_output) return;  // start_scaled_probe() weighs
  product<Real, Vectors>(net.last_t, net.padded[net.top()], net.dim, tangent.noise, keep(tangent.weighing));
}

// w = (v * scale)^T W_last, where the scale of the output differs from stage to stage.
template <class Real, int Vectors>
void start_scaled_probe(const Network<Real>& net, const Tangent<Real>& tangent, const Real* scale) {
  for_each_vector_in<Real, Vectors>(net.dim, [&](int, int, ptrdiff_t at) {
    store<Real>(tangent.scaled_noise + at, load(tangent.noise + at) * load(scale + at));
  });
  product<Real, Vectors>(net.last_t, net.padded[net.top()], net.dim, tangent.scaled_noise,
                         [&](int first_row, auto& acc) {
                           for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& v) {
                             store<Real>(tangent.weighing + at, v);
                           });
                         });
}

// u_1 = sigma'_1 * a_1.
template <class Real, int Vectors, Keep K>
void start_direction(const Network<Real>& net, const Stage<Real>& stage, const Direction<Real>& direction, Real* u) {
  for_each_vector_in<Real, Vectors>(net.padded[0], [&](int row, int, ptrdiff_t at) {
    store<Real>(u + at, slope_of<Real, K>(stage, 0, at) * direction.start(row, at));
  });
}

// Adds w . u_L of every direction to the divergence. Plain: without residual layers and without a scale of the output.
template <class Real, int Vectors, bool Plain>
void add_tangent_divergence(const Network<Real>& net, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                            Vector<Real> (&divergence)[Vectors]) {
  constexpr Keep K = Keep::kNothing;
  const Tangent<Real>& tangent = space.tangent;
  const int top = net.top();
  const Real* scale = Plain ? nullptr : stage.modulated.scale[net.hidden];
  if (net.probed && scale != nullptr) start_scaled_probe<Real, Vectors>(net, tangent, scale);
  const bool scaled = !net.probed && scale != nullptr;
  for (int k = 0; k < net.directions; ++k) {
    const Direction<Real> direction(net, tangent, k);
    Vector<Real> share[Vectors] = {};
    Vector<Real>(&sum)[Vectors] = scaled ? share : divergence;
    // u_l from a_l
    const auto carry = [&](int l, ptrdiff_t at, const Vector<Real>& a) {
      const Vector<Real> u = slope_of<Real, K>(stage, l, at) * a;
      return !Plain && net.residual ? load(tangent.behind[(l - 1) % 2] + at) + u : u;
    };
    start_direction<Real, Vectors, K>(net, stage, direction, tangent.behind[0]);
    for (int l = 1; l < top; ++l) {
      hidden_product<Real, Vectors>(net.weights[l], net.padded[l], net.width[l - 1], tangent.behind[(l - 1) % 2],
                                    nullptr, space.split, [&](int first_row, auto& acc) {
                                      for_each_vector_of(first_row, acc,
                                                         [&](int, int, ptrdiff_t at, const Vector<Real>& a) {
                                                           store<Real>(tangent.behind[l % 2] + at, carry(l, at, a));
                                                         });
                                    });
    }
    const auto weigh = [&](int row, int j, ptrdiff_t at, const Vector<Real>& u) {
      sum[j] += direction.weight(row, at) * u;
    };
    if (top == 0) {
      for_each_vector_in<Real, Vectors>(
          net.padded[0], [&](int row, int j, ptrdiff_t at) { weigh(row, j, at, load(tangent.behind[0] + at)); });
    } else {
      const auto weigh_panel = [&](int first_row, auto& acc) {
        for_each_vector_of(first_row, acc, [&](int row, int j, ptrdiff_t at, const Vector<Real>& a) {
          weigh(row, j, at, carry(top, at, a));
        });
        keep_in_memory(sum);
      };
      hidden_product<Real, Vectors>(net.weights[top], net.padded[top], net.width[top - 1],
                                    tangent.behind[(top - 1) % 2], nullptr, space.split, weigh_panel);
    }
    for (int j = 0; scaled && j < Vectors; ++j) {
      divergence[j] += load(scale + k * kTile<Real> + j * kLanes<Real>) * share[j];
    }
  }
}

// Gradients of the hidden layers' weights by the tangents that have been gathered.
template <class Real>
void accumulate_tangents(const Network<Real>& net, const BackwardSpace<Real>& work, int samples) {
  for (int l = 1; l < net.hidden; ++l) {
    outer_product<Real>(work.tangent.bar[l], static_cast<ptrdiff_t>(net.padded[l]) * kTile<Real>, net.padded[l],
                        work.stages, samples, work.tangent.panels[l], net.padded[l - 1], work.sums.weights[l]);
  }
}

// From the adjoint of w = (v * scale)^T W_last of one stage: the gradients of the scale and of W_last.
template <class Real, int Vectors>
void scaled_probe_adjoint(const Network<Real>& net, const Tangent<Real>& tangent, const BackwardSpace<Real>& work,
                          bool parameters) {
  const Real* bar = work.tangent.weighing_bar;
  product_any_rows<Real, Vectors>(net.last, net.dim, net.width[net.top()], bar, [&](int first_row, auto& acc) {
    for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& v) {
      add_to<Real>(work.gate_bar + at, load(tangent.noise + at) * v);
    });
  });
  if (!parameters) return;
  narrow_product<Real, Vectors>(bar, 0, net.padded[net.top()], tangent.scaled_noise, 0, net.dim, 1, work.narrow_panels,
                                work.sums.last);
}

// Every direction forth, with its share of the divergence, and back: the gradients of the slopes are left in the z_bar
// of the stage, those of the weights in work, and that of the scale of the output is added to work.gate_bar.
template <class Real, int Vectors, Keep K, bool Plain>
void backward_tangents(const Network<Real>& net, const Stage<Real>& stage, const ForwardSpace<Real>& space,
                       const BackwardSpace<Real>& work, int index, const Vector<Real> (&divergence_bar)[Vectors],
                       Vector<Real> (&divergence)[Vectors], bool parameters) {
  constexpr int kSamples = Vectors * kLanes<Real>;
  const int top = net.top();
  const Tangent<Real>& tangent = space.tangent;
  const TangentAdjoint<Real>& adjoint = work.tangent;
  const Real* scale = Plain ? nullptr : stage.modulated.scale[net.hidden];
  const bool scaled = !net.probed && scale != nullptr, residual = !Plain && net.residual;
  if (net.probed && scale != nullptr) {
    start_scaled_probe<Real, Vectors>(net, tangent, scale);
    for_each_vector_in<Real, Vectors>(
        net.padded[top], [&](int, int, ptrdiff_t at) { store<Real>(adjoint.weighing_bar + at, Vector<Real>{}); });
  }
  for (int k = 0; k < net.directions; ++k) {
    const Direction<Real> direction(net, tangent, k);
    // Of w . u_L, which is scaled to its share of the divergence.
    Vector<Real> share[Vectors] = {}, share_bar[Vectors];
    for (int j = 0; j < Vectors; ++j) {
      const ptrdiff_t at = k * kTile<Real> + j * kLanes<Real>;
      share_bar[j] = scaled ? divergence_bar[j] * load(scale + at) : divergence_bar[j];
    }
    Vector<Real>(&sum)[Vectors] = scaled ? share : divergence;
    // The stages go backwards; with all their directions they fill the places of an outer product a whole number of
    // times.
    const int place = ((work.stages - 1 - index) * net.directions + k) % work.stages;
    const auto ahead = [&](int l, int row, ptrdiff_t at) {
      return l == 0 ? direction.start(row, at) : load(tangent.ahead[l] + at);
    };
    const auto bar = [&](int l) {
      return adjoint.bar[l] + (l == 0 ? 0 : static_cast<ptrdiff_t>(place) * net.padded[l] * kTile<Real>);
    };
    const auto slope_bar = [&](int l) {
      return work.z_bar[l] + static_cast<ptrdiff_t>(index) * net.padded[l] * kTile<Real>;
    };
    // From the gradient of u_l at one vector: those of the slope and of a_l.
    const auto through_slope = [&](int l, ptrdiff_t at, const Vector<Real>& u_bar, const Vector<Real>& a,
                                   const Vector<Real>& slope) {
      const Vector<Real> sum = a * u_bar;
      Real* total = slope_bar(l) + at;
      store<Real>(total, k == 0 ? sum : load(total) + sum);
      store<Real>(bar(l) + at, slope * u_bar);
    };

    start_direction<Real, Vectors, K>(net, stage, direction, tangent.behind[0]);
    for (int l = 1; l <= top; ++l) {
      const Real* u = tangent.behind[(l - 1) % 2];
      if (parameters) transpose_panels<Real, Vectors>(u, net.padded[l - 1], place, work.stages, adjoint.panels[l]);
      hidden_product<Real, Vectors>(
          net.weights[l], net.padded[l], net.width[l - 1], u, nullptr, space.split, [&](int first_row, auto& acc) {
            for_each_vector_of(first_row, acc, [&](int, int, ptrdiff_t at, const Vector<Real>& a) {
              store<Real>(tangent.ahead[l] + at, a);
              if (l == top) return;
              const Vector<Real> carried = slope_of<Real, K>(stage, l, at) * a;
              store<Real>(tangent.behind[l % 2] + at, residual ? load(u + at) + carried : carried);
            });
          });
    }

    for (int row = 0; row < net.padded[top]; ++row) {
      Vector<Real> weight_bar{};
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(row) * kTile<Real> + j * kLanes<Real>;
        const Vector<Real> slope = slope_of<Real, K>(stage, top, at), a = ahead(top, row, at);
        const Vector<Real> weight = direction.weight(row, at);
        Vector<Real> u = slope * a;
        if (residual && top > 0) {
          u += load(tangent.behind[(top - 1) % 2] + at);
          store<Real>(adjoint.carried + at, share_bar[j] * weight);
        }
        sum[j] += weight * u;
        through_slope(top, at, share_bar[j] * weight, a, slope);
        if (net.probed) {
          add_to<Real>(adjoint.weighing_bar + at, share_bar[j] * u);
        } else {
          weight_bar += share_bar[j] * u;
        }
      }
      if (!net.probed) {
        add_to<Real>(work.sums.last_tangent + (static_cast<ptrdiff_t>(k) * net.padded[top] + row) * kLanes<Real>,
                     weight_bar);
      }
    }
    for (int l = top; l > 0; --l) {
      hidden_product<Real, Vectors>(
          net.weights_t[l], net.padded[l - 1], net.width[l], bar(l), nullptr, space.split,
          [&](int first_row, auto& acc) {
            for_each_vector_of(first_row, acc, [&](int row, int, ptrdiff_t at, const Vector<Real>& a) {
              Vector<Real> u_bar = a;
              if (residual) {
                u_bar += load(adjoint.carried + at);
                store<Real>(adjoint.carried + at, u_bar);
              }
              through_slope(l - 1, at, u_bar, ahead(l - 1, row, at), slope_of<Real, K>(stage, l - 1, at));
            });
          });
    }
    for (int row = 0; parameters && row < net.padded[0]; ++row) {
      const Real* a_bar = bar(0) + static_cast<ptrdiff_t>(row) * kTile<Real>;
      Vector<Real> sum{};
      JKOFLOW_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        const Vector<Real> v = load(a_bar + j * kLanes<Real>);
        if (net.probed) add_to<Real>(adjoint.seed_bar + row * kTile<Real> + j * kLanes<Real>, v);
        sum += v;
      }
      if (!net.probed) {
        add_to<Real>(work.sums.first_tangent + (static_cast<ptrdiff_t>(k) * net.padded[0] + row) * kLanes<Real>, sum);
      }
    }
    if (parameters && place == work.stages - 1) accumulate_tangents<Real>(net, work, kSamples);
    for (int j = 0; scaled && j < Vectors; ++j) {
      const ptrdiff_t at = k * kTile<Real> + j * kLanes<Real>;
      divergence[j] += load(scale + at) * share[j];
      add_to<Real>(work.gate_bar + at, divergence_bar[j] * share[j]);
    }
  }
  if (net.probed && scale != nullptr) scaled_probe_adjoint<Real, Vectors>(net, tangent, work, parameters);
}

// Gradients of W1x and W_last by a tile's own directions: with the noise constant, one product for all its stages.
template <class Real, int Vectors>
void accumulate_probe(const Network<Real>& net, const Tangent<Real>& tangent, BackwardSpace<Real>& work) {
  narrow_product<Real, Vectors>(work.tangent.seed_bar, 0, net.padded[0], tangent.noise, 0, net.first_inputs, 1,
                                work.narrow_panels, work.sums.weights[0]);
  if (net.gated_output) return;  // scaled_probe_adjoint() has done it, stage by stage
  narrow_product<Real, Vectors>(work.tangent.weighing_bar, 0, net.padded[net.top()], tangent.noise, 0, net.dim, 1,
                                work.narrow_panels, work.sums.last);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
