#include "kernels/base/cuda.cuh"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/base/status.h"

namespace headwater::cuda {

void fail(cudaError_t error, const char* call, const char* file, int line) {
  throw CudaError(std::string(call) + " at " + file + ":" + std::to_string(line) + ": " +
                  cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

Stream::Stream() {
  int major = 0;
  HW_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  overlaps_ = major >= 9;
  HW_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

// What fails here has failed in a call before, or the process ends.
Stream::~Stream() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

Graph::~Graph() {
  if (graph_ != nullptr) (void)cudaGraphExecDestroy(graph_);
}

void Graph::launch(const Stream& stream) const { HW_CUDA(cudaGraphLaunch(graph_, stream.get())); }

Graph record(const Stream& stream, const std::function<void()>& body) {
  HW_CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeRelaxed));
  body();
  cudaGraph_t graph = nullptr;
  HW_CUDA(cudaStreamEndCapture(stream.get(), &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  HW_CUDA(error);
  return Graph(executable);
}

int64_t max_shared_bytes() {
  static const int64_t most = [] {
    int bytes = 0;
    HW_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return int64_t{bytes};
  }();
  return most;
}

Buffer allocate_device(int64_t bytes, const Stream& stream) {
  void* data = nullptr;
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  if (const cudaError_t error = cudaMalloc(&data, size); error != cudaSuccess) {
    size_t free = 0, total = 0;
    (void)cudaGetLastError();  // an allocation that fails leaves the device usable
    (void)cudaMemGetInfo(&free, &total);
    throw CudaError("cannot allocate " + std::to_string(size) + " bytes on the GPU, " +
                    std::to_string(free) + " of " + std::to_string(total) +
                    " are free: " + cudaGetErrorString(error) +
                    "; lower gpu-memory-utilization, kv-cache-bytes or max-num-batched-tokens, or "
                    "take a smaller model");
  }
  Buffer buffer(static_cast<std::byte*>(data), bytes, [](std::byte* d) { (void)cudaFree(d); });
  HW_CUDA(cudaMemsetAsync(data, 0, size, stream.get()));
  return buffer;
}

Event::Event() { HW_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
Event::~Event() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}
void Event::record(const Stream& stream) { HW_CUDA(cudaEventRecord(event_, stream.get())); }
void Event::precede(const Stream& stream) const {
  HW_CUDA(cudaStreamWaitEvent(stream.get(), event_, 0));
}
void Event::wait() const { HW_CUDA(cudaEventSynchronize(event_)); }

const void* UploadRing::put(const void* host, int64_t bytes) {
  events_[next_].wait();
  void* slot = slots_.data() + static_cast<int64_t>(next_) * kSlotBytes;
  std::memcpy(slot, host, static_cast<size_t>(bytes));
  return slot;
}
void UploadRing::sent(const Stream& stream) {
  events_[next_].record(stream);
  next_ = (next_ + 1) % kNumSlots;
}

Buffer allocate_pinned(int64_t bytes) {
  void* data = nullptr;
  HW_CUDA(cudaMallocHost(&data, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  return {static_cast<std::byte*>(data), bytes, [](std::byte* d) { (void)cudaFreeHost(d); }};
}

}  // namespace headwater::cuda
