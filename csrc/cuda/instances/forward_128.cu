#include "../forward_kernels.cuh"

namespace jkoflow::cuda {
JKOFLOW_FORWARD_KERNELS(128)
}
