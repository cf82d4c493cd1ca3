// What the kernels must compute, as plain loops over samples and scalars; it shares no code with them.
#pragma once

#include <complex>

#include "case.h"

namespace jkoflow::test {

// x_end, logdet and path. The divergence is taken along tangents, one for each feature or the noise.
// Scalar: double, or std::complex<double> for derivatives.
template <class Scalar>
Tensors<Scalar> integrate(const Case& c, const Tensors<Scalar>& in);

// The derivative of <bar x_end, x_end> + <bar logdet, logdet> + <bar path, path> by the tensor `name` along
// `direction`. By a complex step: the imaginary part at in + i h direction, over h, is free of cancellation, so exact
// to rounding.
double derivative(const Case& c, const Tensors<double>& in, const std::string& name,
                  const std::vector<double>& direction);

}  // namespace jkoflow::test
