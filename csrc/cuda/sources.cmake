# The CUDA sources; several small ones, so that they compile in parallel.
set(JKOFLOW_CUDA_SOURCES csrc/cuda/launch.cu)
