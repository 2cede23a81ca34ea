// Tensors in global memory as the copy engine of sm_90 knows them. Host code; the map travels to
// the kernel as a __grid_constant__ argument.
#pragma once

#include <cuda.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/cuda.cuh"

namespace headwater::cuda {

// sizes and box count elements of two bytes, the innermost dimension first; strides count bytes, of
// all dimensions but that. A box of 64 elements' width lies in shared memory as wgmma_cuda.cuh has
// it; what is outside the tensor is zeros there.
template <size_t kDims>
CUtensorMap tensor_map(CUtensorMapDataType type,
                       const void* data,
                       const std::array<uint64_t, kDims>& sizes,
                       const std::array<uint64_t, kDims - 1>& strides,
                       const std::array<uint32_t, kDims>& box) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    HW_CUDA(cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    HW_CHECK(found == cudaDriverEntryPointSuccess, "driver's tensor maps", int{found});
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  std::array<uint32_t, kDims> steps;
  steps.fill(1);
  CUtensorMap map;
  const CUresult result = encode(&map,
                                 type,
                                 kDims,
                                 const_cast<void*>(data),
                                 sizes.data(),
                                 strides.data(),
                                 box.data(),
                                 steps.data(),
                                 CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  HW_CHECK(result == CUDA_SUCCESS, "a tensor map that the driver takes", int{result});
  return map;
}

}  // namespace headwater::cuda
