#include "kernels/attention/pages_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;

// Block: one page; pages are whole granules of 256 bytes.
__global__ void copy_kernel(std::byte* arena,
                            int64_t page_bytes,
                            const PageId* from,
                            const PageId* to) {
  const auto* source = reinterpret_cast<const uint4*>(arena + from[blockIdx.x] * kPageGranuleBytes);
  auto* target = reinterpret_cast<uint4*>(arena + to[blockIdx.x] * kPageGranuleBytes);
  for (int64_t i = threadIdx.x; i < page_bytes / int64_t{sizeof(uint4)}; i += kThreads)
    target[i] = source[i];
}

__global__ void write_table_kernel(int32_t* table, const TableEntry* entries, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) table[entries[i].offset] = entries[i].page;
}

}  // namespace

bool has_kernels_for_device() {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, copy_kernel);
  (void)cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    return false;
  HW_CUDA(error);
  return true;
}

void copy_pages(std::byte* arena,
                int64_t page_bytes,
                const PageId* from,
                const PageId* to,
                int64_t count,
                const Stream& stream) {
  if (count == 0) return;
  copy_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream.get()>>>(
      arena, page_bytes, from, to);
  HW_CUDA_LAUNCHED();
}

void write_table(int32_t* table, const TableEntry* entries, int64_t count, const Stream& stream) {
  if (count == 0) return;
  write_table_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads),
                       kThreads,
                       0,
                       stream.get()>>>(table, entries, count);
  HW_CUDA_LAUNCHED();
}

}  // namespace headwater::cuda
