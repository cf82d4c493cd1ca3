// Rows that do not reach the end of their integration, beside rows that do.
#pragma once

#include "cpu/dispatch.h"

namespace jkoflow::test {

// Counts what does not hold, see check.h.
void check_row_failures(const CpuKernels* kernels);

}  // namespace jkoflow::test
