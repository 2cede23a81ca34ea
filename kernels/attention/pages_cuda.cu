#include "kernels/attention/pages_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 2;  // loads of a thread before its first store

// Block: kThreads * kInFlight words of one page, which has `blocks` of them.
__global__ void copy_kernel(
    std::byte* arena, int64_t page_words, int32_t blocks, const PageId* from, const PageId* to) {
  const int64_t page = blockIdx.x / blocks;
  const int64_t first = int64_t{blockIdx.x % blocks} * (kThreads * kInFlight) + threadIdx.x;
  const auto* source = reinterpret_cast<const uint4*>(arena + from[page] * kPageGranuleBytes);
  auto* target = reinterpret_cast<uint4*>(arena + to[page] * kPageGranuleBytes);
  uint4 words[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i)
    if (first + i * kThreads < page_words) words[i] = source[first + i * kThreads];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i)
    if (first + i * kThreads < page_words) target[first + i * kThreads] = words[i];
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
  constexpr int64_t kBlockWords = kThreads * kInFlight;
  const int64_t page_words = page_bytes / int64_t{sizeof(uint4)};
  const auto blocks = static_cast<int32_t>((page_words + kBlockWords - 1) / kBlockWords);
  copy_kernel<<<static_cast<unsigned>(count * blocks), kThreads, 0, stream.get()>>>(
      arena, page_words, blocks, from, to);
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
