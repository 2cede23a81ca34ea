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

// Shared memory of one block at most: 227 KiB on sm_90 and sm_100, 163 on sm_80, 99 on sm_86, sm_89
// and sm_120.
int64_t max_shared_bytes();

// Zeroed in the order of the stream. Throws CudaError that says how much was free.
Buffer allocate_device(int64_t bytes, const Stream& stream);

// Pinned host memory. Throws CudaError.
Buffer allocate_pinned(int64_t bytes);

// Move-only owner.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : event_(other.event_) { other.event_ = nullptr; }
  Event& operator=(Event&&) = delete;
  void record(const Stream& stream);
  void wait() const;  // until what was recorded last, if anything, is reached
  void precede(const Stream& stream) const;  // what the stream is given from now on waits for it

 private:
  cudaEvent_t event_ = nullptr;
};

// Pinned copies of what is being uploaded, so that neither the host waits for the stream nor the
// stream for the host. Any streams.
class UploadRing {
 public:
  static constexpr int64_t kSlotBytes = int64_t{512} << 10;

  // The bytes' pinned copy; waits if that place's last upload is still under way.
  const void* put(const void* host, int64_t bytes);
  void sent(const Stream& stream);  // the copy from there was called

 private:
  static constexpr size_t kNumSlots = 8;  // a step takes one to three
  Buffer slots_ = allocate_pinned(kNumSlots * kSlotBytes);
  Event events_[kNumSlots];
  size_t next_ = 0;
};

}  // namespace headwater::cuda

#define HW_CUDA(call) ::headwater::cuda::check((call), #call, __FILE__, __LINE__)
// Behind a launch, which returns nothing.
#define HW_CUDA_LAUNCHED() HW_CUDA(cudaGetLastError())
