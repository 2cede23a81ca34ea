// How kernels are launched and follow each other. On sm_90 and later a kernel may start while the
// one before it ends: what it prepares by itself (the weights it will need) is on its way by the
// time that wait_for_previous() returns. Every kernel calls that before it touches what a step
// changes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/cuda.cuh"

namespace headwater::cuda {

// All that kernels before this one wrote is there.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel's blocks may take what room the device has.
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// cluster: blocks that run at once and read each other's shared memory (sm_90 and later); 1 each
// way: none.
template <typename... Parameters, typename... Arguments>
void launch_clusters(const Stream& stream,
                     void (*kernel)(Parameters...),
                     dim3 grid,
                     dim3 cluster,
                     int threads,
                     size_t shared_bytes,
                     Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.get();
  cudaLaunchAttribute attributes[2]{};
  if (stream.overlaps()) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster.x;
    attribute.val.clusterDim.y = cluster.y;
    attribute.val.clusterDim.z = cluster.z;
  }
  config.attrs = attributes;
  HW_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

template <typename... Parameters, typename... Arguments>
void launch(const Stream& stream,
            void (*kernel)(Parameters...),
            dim3 grid,
            int threads,
            size_t shared_bytes,
            Arguments&&... arguments) {
  launch_clusters(
      stream, kernel, grid, dim3(1), threads, shared_bytes, static_cast<Arguments&&>(arguments)...);
}

}  // namespace headwater::cuda
