// On a GPU: a kernel that writes beyond its memory and one with a race, to show that compute-sanitizer sees both. Their
// names have "jkoflow" in them, which is what scripts/gpu_check.py asks it to watch.
//   compute-sanitizer --tool memcheck ./faulty memory; compute-sanitizer --tool racecheck ./faulty race
#include <cstdio>
#include <cstring>

namespace jkoflow {

__global__ void write_beyond(float* memory, int count) { memory[count + threadIdx.x] = 1.0f; }

__global__ void race(float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];  // without a barrier
}

}  // namespace jkoflow

int main(int argc, char** argv) {
  float* memory = nullptr;
  if (argc != 2 || cudaMalloc(&memory, 64 * sizeof(float)) != cudaSuccess) return 1;
  if (std::strcmp(argv[1], "memory") == 0) {
    jkoflow::write_beyond<<<1, 64>>>(memory, 64);
  } else {
    jkoflow::race<<<1, 64>>>(memory);
  }
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
