// What the kernels must compute, as plain loops over samples and scalars; it shares no code with them.
#pragma once

#include <complex>

#include "case.h"

namespace jkoflow::test {

// x_end, logdet and path. The divergence is taken along tangents, one for each feature or the noise.
// Scalar: double, or std::complex<double> for derivatives.
template <class Scalar>
Tensors<Scalar> integrate(const Case& c, const Tensors<Scalar>& in);

// Of one evaluation at "times": the velocity as x_end and its divergence as logdet.
template <class Scalar>
Tensors<Scalar> evaluate(const Case& c, const Tensors<Scalar>& in);

// The discrete map along the recorded (t, dt) of each row, from its x: x_end, logdet, x_outputs and logdet_outputs; and
// "errors", of each row the largest error of a step over its tolerance. Only here is the divergence of the linear term
// in the logdet, as a constant.
template <class Scalar>
Tensors<Scalar> follow_steps(const Case& c, const Tensors<Scalar>& in);

// The derivative of the sum of <bar y, y> over the tensors y of an answer for which there is a "bar y", by the tensor
// `name` along `direction`. By a complex step: the imaginary part at in + i h direction, over h, is free of
// cancellation, so exact to rounding.
using Answer = Tensors<std::complex<double>> (*)(const Case&, const Tensors<std::complex<double>>&);
double derivative(Answer answer, const Case& c, const Tensors<double>& in, const std::string& name,
                  const std::vector<double>& direction);

}  // namespace jkoflow::test
