#include "kernels/base/cuda.cuh"

#include <algorithm>
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

}  // namespace headwater::cuda
