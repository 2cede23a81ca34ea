// What the CUDA files share: the check of every call, the stream, device memory. Included by *_cuda
// files only. Engine thread, one device (the first visible).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "kernels/base/tensor.h"

namespace headwater::cuda {

// Throws CudaError: the call, its place, the driver's words.
[[noreturn]] void fail(cudaError_t error, const char* call, const char* file, int line);

inline void check(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) [[unlikely]]
    fail(error, call, file, line);
}

// Move-only owner.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(Stream&& other) noexcept : overlaps_(other.overlaps_), stream_(other.stream_) {
    other.stream_ = nullptr;
  }
  Stream& operator=(Stream&&) = delete;
  cudaStream_t get() const { return stream_; }
  // Whether a kernel may start while the one before it ends (launch_cuda.cuh).
  bool overlaps() const { return overlaps_; }

 private:
  bool overlaps_ = false;
  cudaStream_t stream_ = nullptr;
};

// Work of a stream, recorded. Move-only owner.
class Graph {
 public:
  Graph() = default;
  explicit Graph(cudaGraphExec_t graph) : graph_(graph) {}
  ~Graph();
  Graph(Graph&& other) noexcept : graph_(other.graph_) { other.graph_ = nullptr; }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  explicit operator bool() const { return graph_ != nullptr; }
  void launch(const Stream& stream) const;

 private:
  cudaGraphExec_t graph_ = nullptr;
};

// What body puts on the stream, without running it.
Graph record(const Stream& stream, const std::function<void()>& body);

// Zeroed in the order of the stream. Throws CudaError that says how much was free.
Buffer allocate_device(int64_t bytes, const Stream& stream);

}  // namespace headwater::cuda

#define HW_CUDA(call) ::headwater::cuda::check((call), #call, __FILE__, __LINE__)
// Behind a launch, which returns nothing.
#define HW_CUDA_LAUNCHED() HW_CUDA(cudaGetLastError())
