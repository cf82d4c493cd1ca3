#include "oracle.h"

#include <cmath>

namespace jkoflow::test {
namespace {

double real(double z) { return z; }
double real(const std::complex<double>& z) { return z.real(); }

template <class Scalar>
Scalar sigmoid(const Scalar& z) {
  return real(z) > 0 ? 1.0 / (1.0 + std::exp(-z)) : std::exp(z) / (1.0 + std::exp(z));
}

// Phi, whose derivative is phi: a complex step carries it along.
double normal_below(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }
std::complex<double> normal_below(const std::complex<double>& z) {
  const double density = std::exp(-0.5 * z.real() * z.real()) / std::sqrt(2 * std::acos(-1.0));
  return {normal_below(z.real()), density * z.imag()};
}

template <class Scalar>
struct ValueAndSlope {
  Scalar value, slope;
};

template <class Scalar>
ValueAndSlope<Scalar> activate(const Case& c, const Scalar& z) {
  switch (c.activation) {
    case ActivationKind::kTanh: {
      const Scalar h = std::tanh(z);
      return {h, 1.0 - h * h};
    }
    case ActivationKind::kSoftplus: {
      const Scalar y = c.beta * z;
      const Scalar value = real(y) > 0 ? y + std::log(1.0 + std::exp(-y)) : std::log(1.0 + std::exp(y));
      return {value / c.beta, sigmoid(y)};
    }
    case ActivationKind::kSilu: {
      const Scalar gate = sigmoid(z);
      return {z * gate, gate + z * gate * (1.0 - gate)};
    }
    case ActivationKind::kElu:
    case ActivationKind::kSelu: {
      const bool scaled = c.activation == ActivationKind::kSelu;
      const double scale = scaled ? 1.0507009873554804934 : 1.0, alpha = scaled ? 1.6732632423543772848 : 1.0;
      if (real(z) > 0) return {scale * z, scale};
      return {scale * alpha * (std::exp(z) - 1.0), scale * alpha * std::exp(z)};
    }
    case ActivationKind::kGelu: {
      const Scalar below = normal_below(z), density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::acos(-1.0));
      return {z * below, below + z * density};
    }
  }
  return {};
}

template <class Scalar>
int64_t step_number(const Tensors<Scalar>& in, const char* name, int64_t at) {
  return static_cast<int64_t>(real(in.at(name)[at]));
}

// The network at one sample. The slopes of the last layer are its scale.
template <class Scalar>
class Velocity {
 public:
  Velocity(const Case& c, const Tensors<Scalar>& in, int64_t sample) : c_(c), sample_(sample) {
    for (int l = 0; l <= c.layers(); ++l) {
      weight_.push_back(in.at("weight" + std::to_string(l)).data());
      bias_.push_back(in.at("bias" + std::to_string(l)).data());
    }
    const auto find = [&](const char* name) {
      const auto found = in.find(name);
      return found == in.end() ? nullptr : found->second.data();
    };
    context_ = find("context");
    noise_ = find("noise");
    linear_ = find("linear");
    modulation_ = find("modulation");
  }

  // Returns the divergence of the network without its linear term.
  Scalar operator()(const std::vector<Scalar>& x, const Scalar& t, std::vector<Scalar>& velocity) const {
    std::vector<Scalar> h = x;
    if (!c_.modulation.present) {
      if (c_.time) h.emplace_back(t);
      add_context(h);
    }
    std::vector<std::vector<Scalar>> slopes;
    const std::vector<Layer> layers = modulate(t);
    for (int l = 0; l < c_.layers(); ++l) {
      const std::vector<Scalar> below = h;
      h = affine(l, h);
      slopes.emplace_back();
      for (size_t i = 0; i < h.size(); ++i) {
        const auto [value, slope] = activate(c_, layers[l].scale[i] * h[i] + layers[l].shift[i]);
        h[i] = c_.residual && l > 0 ? below[i] + value : value;
        slopes.back().push_back(layers[l].scale[i] * slope);
      }
    }
    velocity = affine(c_.layers(), h);
    const Layer& last = layers.back();
    for (int i = 0; i < c_.dim; ++i) velocity[i] = last.scale[i] * velocity[i] + last.shift[i];
    slopes.push_back(last.scale);
    for (int i = 0; linear_ != nullptr && i < c_.dim; ++i) {
      for (int j = 0; j < c_.dim; ++j) velocity[i] += linear_[i * c_.dim + j] * x[j];
    }
    return divergence(slopes);
  }

  // That of the linear term; a number, since its derivative is not the kernels' business.
  double linear_divergence() const {
    double sum = 0;
    for (int i = 0; linear_ != nullptr && c_.divergence != Divergence::kNone && i < c_.dim; ++i) {
      if (c_.divergence == Divergence::kExact) sum += real(linear_[i * c_.dim + i]);
      for (int j = 0; c_.divergence == Divergence::kHutchinson && j < c_.dim; ++j) {
        sum += real(noise_[sample_ * c_.dim + i] * linear_[i * c_.dim + j] * noise_[sample_ * c_.dim + j]);
      }
    }
    return sum;
  }

 private:
  struct Layer {
    std::vector<Scalar> scale, shift;
  };

  int rows(int l) const { return c_.rows(l); }

  void add_context(std::vector<Scalar>& columns) const {
    for (int k = 0; k < c_.context_dim; ++k) columns.push_back(context_[sample_ * c_.context_dim + k]);
  }

  // Scale and shift of every layer, the last one included: from the frequencies, then G, g and S of each layer.
  std::vector<Layer> modulate(const Scalar& t) const {
    const Modulation& kind = c_.modulation;
    const Scalar* next = modulation_;
    std::vector<Scalar> u;
    if (kind.time) u.emplace_back(t);
    for (int k = 0; k < kind.frequencies; ++k) u.push_back(std::cos(t * next[k]));
    for (int k = 0; k < kind.frequencies; ++k) u.push_back(std::sin(t * next[k]));
    next += kind.frequencies;
    add_context(u);
    std::vector<Layer> layers;
    for (int l = 0; l <= c_.layers(); ++l) {
      Layer layer = {std::vector<Scalar>(rows(l), 1), std::vector<Scalar>(rows(l))};
      const auto multiply = [&](std::vector<Scalar>& out) {
        for (Scalar& value : out) {
          value = 0;
          for (const Scalar& column : u) value += *next++ * column;
        }
      };
      if (kind.has_gate(l)) {
        multiply(layer.scale);
        for (Scalar& value : layer.scale) {
          value += *next++;
          value = kind.gate == GateKind::kSigmoid ? sigmoid(value) : 1.0 + value;
        }
      }
      if (kind.has_shift(l)) multiply(layer.shift);
      layers.push_back(layer);
    }
    return layers;
  }

  std::vector<Scalar> affine(int l, const std::vector<Scalar>& h) const {
    std::vector<Scalar> z = product(l, h, static_cast<int>(h.size()));
    for (int i = 0; i < rows(l); ++i) z[i] += bias_[l][i];
    return z;
  }
  std::vector<Scalar> product(int l, const std::vector<Scalar>& h, int columns) const {
    std::vector<Scalar> z(rows(l));
    for (int i = 0; i < rows(l); ++i) {
      for (size_t k = 0; k < h.size(); ++k) z[i] += weight_[l][static_cast<int64_t>(i) * columns + k] * h[k];
    }
    return z;
  }

  std::vector<Scalar> tangent(std::vector<Scalar> v, const std::vector<std::vector<Scalar>>& slopes) const {
    for (int l = 0; l <= c_.layers(); ++l) {
      const std::vector<Scalar> below = v;
      v = product(l, v, l == 0 ? c_.input_columns() : static_cast<int>(v.size()));
      for (size_t i = 0; i < v.size(); ++i) {
        v[i] *= slopes[l][i];
        if (c_.residual && l > 0 && l < c_.layers()) v[i] += below[i];
      }
    }
    return v;
  }

  Scalar divergence(const std::vector<std::vector<Scalar>>& slopes) const {
    Scalar sum = 0;
    if (c_.divergence == Divergence::kExact) {
      for (int i = 0; i < c_.dim; ++i) {
        std::vector<Scalar> unit(c_.dim);
        unit[i] = 1;
        sum += tangent(unit, slopes)[i];
      }
    } else if (c_.divergence == Divergence::kHutchinson) {
      const std::vector<Scalar> probe(noise_ + sample_ * c_.dim, noise_ + (sample_ + 1) * c_.dim);
      const std::vector<Scalar> image = tangent(probe, slopes);
      for (int i = 0; i < c_.dim; ++i) sum += probe[i] * image[i];
    }
    return sum;
  }

  const Case& c_;
  int64_t sample_;
  std::vector<const Scalar*> weight_, bias_;
  const Scalar *context_, *noise_, *linear_, *modulation_;
};

}  // namespace

template <class Scalar>
Tensors<Scalar> integrate(const Case& c, const Tensors<Scalar>& in) {
  const Tableau method = tableau(c.method);
  const double dt = (c.t1 - c.t0) / c.num_steps;
  Tensors<Scalar> out;
  std::vector<Scalar>&x_end = out["x_end"], &logdet = out["logdet"], &path = out["path"];
  x_end.resize(c.batch * c.dim);
  logdet.resize(c.batch);
  path.resize((c.num_steps + 1) * c.batch * c.dim);
  for (int64_t sample = 0; sample < c.batch; ++sample) {
    const Velocity<Scalar> velocity(c, in, sample);
    const Scalar* row = in.at("x").data() + sample * c.dim;
    std::vector<Scalar> x(row, row + c.dim);
    const auto record = [&](int step) {
      for (int i = 0; i < c.dim; ++i) path[(step * c.batch + sample) * c.dim + i] = x[i];
    };
    record(0);
    for (int step = 0; step < c.num_steps; ++step) {
      std::vector<std::vector<Scalar>> slope(method.stages);
      std::vector<Scalar> end = x;
      for (int s = 0; s < method.stages; ++s) {
        std::vector<Scalar> at = x;
        for (int j = 0; j < s; ++j) {
          for (int i = 0; i < c.dim; ++i) at[i] += dt * method.a[s][j] * slope[j][i];
        }
        logdet[sample] += dt * method.b[s] * velocity(at, c.t0 + (step + method.c[s]) * dt, slope[s]);
        for (int i = 0; i < c.dim; ++i) end[i] += dt * method.b[s] * slope[s][i];
      }
      x = end;
      record(step + 1);
    }
    for (int i = 0; i < c.dim; ++i) x_end[sample * c.dim + i] = x[i];
  }
  return out;
}

template Tensors<double> integrate(const Case&, const Tensors<double>&);
template Tensors<std::complex<double>> integrate(const Case&, const Tensors<std::complex<double>>&);

template <class Scalar>
Tensors<Scalar> evaluate(const Case& c, const Tensors<Scalar>& in) {
  Tensors<Scalar> out;
  std::vector<Scalar>&x_end = out["x_end"], &logdet = out["logdet"];
  for (int64_t sample = 0; sample < c.batch; ++sample) {
    const Scalar* row = in.at("x").data() + sample * c.dim;
    std::vector<Scalar> velocity;
    const Scalar t = c.time ? in.at("times")[sample] : Scalar(0);
    logdet.push_back(Velocity<Scalar>(c, in, sample)(std::vector<Scalar>(row, row + c.dim), t, velocity));
    x_end.insert(x_end.end(), velocity.begin(), velocity.end());
  }
  return out;
}

template Tensors<double> evaluate(const Case&, const Tensors<double>&);
template Tensors<std::complex<double>> evaluate(const Case&, const Tensors<std::complex<double>>&);

namespace {

template <class Scalar>
Scalar linear_combination(const double* weights, const std::vector<std::vector<Scalar>>& slopes, int component) {
  Scalar sum = 0;
  for (size_t s = 0; s < slopes.size(); ++s) sum += weights[s] * slopes[s][component];
  return sum;
}

}  // namespace

template <class Scalar>
Tensors<Scalar> follow_steps(const Case& c, const Tensors<Scalar>& in) {
  const Tableau method = tableau(c.method);
  const Adaptive control = embedded(c.method);
  const int dim = c.dim, components = dim + (c.divergence == Divergence::kNone ? 0 : 1);
  Tensors<Scalar> out;
  std::vector<Scalar>&x_end = out["x_end"], &logdets = out["logdet"], &errors = out["errors"];
  out["x_outputs"].resize(c.outputs() * c.batch * dim);
  out["logdet_outputs"].resize(c.outputs() * c.batch);
  for (int64_t sample = 0; sample < c.batch; ++sample) {
    const Velocity<Scalar> velocity(c, in, sample);
    std::vector<int64_t> steps;
    for (int64_t at = step_number(in, "last_step", sample); at >= 0; at = step_number(in, "record previous", at)) {
      steps.insert(steps.begin(), at);
    }
    // The state is x with the logdet behind it.
    const Scalar* row = in.at("x").data() + sample * dim;
    std::vector<Scalar> state(row, row + dim);
    state.emplace_back(0);
    double worst = 0;
    int output = 0;
    for (const int64_t step : steps) {
      const double t = real(in.at("record t")[step]), dt = real(in.at("record dt")[step]);
      std::vector<std::vector<Scalar>> slopes;
      for (int s = 0; s < method.stages; ++s) {
        std::vector<Scalar> at(dim), slope;
        for (int i = 0; i < dim; ++i) at[i] = state[i] + dt * linear_combination(method.a[s], slopes, i);
        const Scalar divergence = velocity(at, Scalar(t + method.c[s] * dt), slope);
        slope.push_back(divergence + velocity.linear_divergence());
        if (c.divergence == Divergence::kNone) slope.back() = 0;
        slopes.push_back(slope);
      }
      for (; output < c.outputs() && (c.output_times[output] - t) / dt <= 1; ++output) {
        double weights[kMaxStages] = {};
        for (int s = 0; s < method.stages; ++s) {
          for (int k = 0; k < 4; ++k) {
            weights[s] += control.dense[s][k] * std::pow((c.output_times[output] - t) / dt, k + 1);
          }
        }
        const int64_t place = output * c.batch + sample;
        for (int i = 0; i < dim; ++i) {
          out["x_outputs"][place * dim + i] = state[i] + dt * linear_combination(weights, slopes, i);
        }
        out["logdet_outputs"][place] = state[dim] + dt * linear_combination(weights, slopes, dim);
      }
      double squares = 0;
      std::vector<Scalar> end = state;
      for (int i = 0; i < components; ++i) {
        end[i] += dt * linear_combination(method.b, slopes, i);
        const double size = std::fmax(std::fabs(real(state[i])), std::fabs(real(end[i])));
        const double error = dt * real(linear_combination(control.error, slopes, i)) / (c.atol + c.rtol * size);
        squares += error * error;
      }
      worst = std::fmax(worst, std::sqrt(squares / components));
      state = end;
    }
    x_end.insert(x_end.end(), state.begin(), state.end() - 1);
    logdets.push_back(state[dim]);
    errors.emplace_back(worst);
  }
  return out;
}

template Tensors<double> follow_steps(const Case&, const Tensors<double>&);
template Tensors<std::complex<double>> follow_steps(const Case&, const Tensors<std::complex<double>>&);

double derivative(Answer answer, const Case& c, const Tensors<double>& in, const std::string& name,
                  const std::vector<double>& direction) {
  constexpr double kStep = 1e-30;
  Tensors<std::complex<double>> moved;
  for (const auto& [key, values] : in) moved[key].assign(values.begin(), values.end());
  for (size_t i = 0; i < direction.size(); ++i) moved.at(name)[i].imag(kStep * direction[i]);
  double sum = 0;
  for (const auto& [key, values] : answer(c, moved)) {
    const auto bar = in.find("bar " + key);
    if (bar == in.end()) continue;
    for (size_t i = 0; i < values.size(); ++i) sum += bar->second[i] * values[i].imag();
  }
  return sum / kStep;
}

}  // namespace jkoflow::test
