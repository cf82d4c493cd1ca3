#include "../backward_kernels.cuh"

namespace jkoflow::cuda {
JKOFLOW_BACKWARD_KERNELS(256)
}
