// CudaOps: one GPU, one stream. The residual is f32; weights and pages keep their formats. Host
// code only: the kernels are in the *_cuda.cu files.
#include <algorithm>
#include <optional>
#include <string>
#include <unordered_map>

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/pages_cuda.cuh"
#include "kernels/base/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/base/status.h"
#include "kernels/linear/linear_cuda.cuh"
#include "kernels/norm/norm_cuda.cuh"
#include "kernels/ops.h"
#include "kernels/rope/rope_cuda.cuh"
#include "kernels/sample/draw_tokens_cuda.cuh"
#include "kernels/sample/top_logits_cuda.cuh"

namespace headwater {
namespace {

constexpr size_t kMostGraphs = 1024;  // recorded steps that are kept
// Rows of a product whose bits do not depend on how many there are (tests/kernels/ops).
constexpr int64_t kExactRows = 4;
constexpr int64_t kExactCols = 32;         // in multiples of these; others are cuBLAS's
constexpr int64_t kStagedPairs = 1 << 16;  // of pages, of one launch

const cuda::CudaWeight& on_device(const Weight& weight) {
  return static_cast<const cuda::CudaWeight&>(weight);
}

class CudaOps final : public Ops {
 public:
  explicit CudaOps(const CudaOptions& options)
      : deterministic_(options.deterministic),
        cublas_(stream_),
        staged_(cuda::allocate_device(2 * kStagedPairs * int64_t{sizeof(PageId)}, stream_)) {
    cudaDeviceProp device{};
    int driver = 0;
    HW_CUDA(cudaGetDeviceProperties(&device, 0));
    HW_CUDA(cudaDriverGetVersion(&driver));
    num_processors_ = device.multiProcessorCount;
    device_bytes_ = static_cast<int64_t>(device.totalGlobalMem);
    attention_.num_processors = num_processors_;
    attention_.deterministic = deterministic_;
    description_ = std::string(device.name) + ", " + std::to_string(device.totalGlobalMem >> 30) +
                   " GiB, sm_" + std::to_string(device.major) + std::to_string(device.minor) +
                   ", CUDA " + std::to_string(driver / 1000) + "." +
                   std::to_string(driver % 1000 / 10);
  }

  std::string_view name() const override { return "cuda"; }
  std::string_view description() const override { return description_; }
  DType activation_dtype() const override { return DType::kF32; }
  DType linear_dtype(const Weight& weight, int64_t num_rows) const override {
    return deterministic_ ? DType::kF32 : cuda::linear_dtype(on_device(weight), num_rows);
  }
  DType default_kv_format() const override { return DType::kF16; }
  bool supports_kv(const PageShape& page) const override {
    return page.head_dim > 0 && page.head_dim % 16 == 0 && page.head_dim <= cuda::kMaxHeadDim &&
           page.page_tokens > 0 && page.page_tokens % 16 == 0;
  }
  bool memory_is_host() const override { return false; }
  DeviceBytes device_memory() const override {
    size_t free = 0, total = 0;
    HW_CUDA(cudaMemGetInfo(&free, &total));
    return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
  }

  Buffer allocate(int64_t bytes) override { return cuda::allocate_device(bytes, stream_); }
  Buffer allocate_staging(int64_t bytes) override { return cuda::allocate_pinned(bytes); }
  void upload(void* device, const void* host, int64_t bytes) override {
    upload(device, host, bytes, stream_);
  }
  void upload_early(void* device, const void* host, int64_t bytes) override {
    upload(device, host, bytes, early_);
    early_sent_.record(early_);
    early_sent_.precede(stream_);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    HW_CUDA(cudaMemcpyAsync(
        host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_.get()));
  }
  void reserve(int32_t max_tokens) override {
    upload_.reset();  // what is loaded later makes another
    attention_ = cuda::attention_scratch(max_tokens, num_processors_, deterministic_, stream_);
  }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    for (const WeightView& view : parts)
      HW_CHECK(view.cols == parts[0].cols, "fused parts differ in their inputs", view.cols);
    if (deterministic_ && parts[0].cols % kExactCols != 0)
      throw LoadError("deterministic: the GPU's exact products take multiples of " +
                      std::to_string(kExactCols) + " inputs, got a weight of " +
                      std::to_string(parts[0].cols) + "; run without it or with --device cpu");
    if (!upload_) upload_.emplace(stream_);
    return cuda::load_weight(parts, deterministic_, linear_, device_bytes_, *upload_, stream_);
  }

  void embed(const Weight& table, const StepView& step, float scale, Matrix out) override {
    cuda::embed(on_device(table), step.token_ids, scale, out.first_rows(step.num_rows), stream_);
  }
  void rms_norm(Matrix x, const float* weight, float eps, Matrix out) override {
    cuda::rms_norm(x, weight, eps, out, stream_);
  }
  void linear(const Weight& weight, Matrix x, Matrix out, LinearMode mode) override {
    const int64_t at_once = deterministic_ ? kExactRows : x.rows;
    for (int64_t row = 0; row < x.rows; row += at_once) {
      const int64_t rows = std::min(at_once, x.rows - row);
      FusedLinear product;
      product.x = x.row_range(row, rows);
      product.out = out.row_range(row, rows);
      multiply(weight, product, mode == LinearMode::kAdd);
    }
  }
  void fused_linear(const Weight& weight, const FusedLinear& args) override {
    const bool exact = !deterministic_ || args.x.rows <= kExactRows;
    if (exact && cuda::can_fuse(on_device(weight), args)) return multiply(weight, args, false);
    FusedLinear normed = args;
    if (args.norm != nullptr) {
      rms_norm(args.x, args.norm, args.eps, args.normed);
      normed.x = args.normed;
      normed.norm = nullptr;
    }
    if (exact && cuda::can_fuse(on_device(weight), normed)) return multiply(weight, normed, false);
    Ops::fused_linear(weight, normed);
  }
  void add_bias(Matrix x, const float* bias) override { cuda::add_bias(x, bias, stream_); }
  void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out) override {
    cuda::rope_angles(rope, step, out, stream_);
  }
  void rope_append_kv(int32_t layer,
                      const HeadShape& heads,
                      const RopeSpec& rope,
                      const StepView& step,
                      Matrix angles,
                      Matrix q,
                      Matrix k,
                      Matrix v) override {
    cuda::rope_append_kv(layer, heads, rope, step, angles, q, k, v, stream_);
  }
  void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step) override {
    cuda::fold_kv(layer, heads, step, stream_);
  }
  void attention(const AttentionArgs& args, const StepView& step) override {
    cuda::attention(args, step, attention_, stream_);
  }
  void silu_mul(Matrix gate_up, Matrix out) override { cuda::silu_mul(gate_up, out, stream_); }
  void gelu_mul(Matrix gate_up, Matrix out) override { cuda::gelu_mul(gate_up, out, stream_); }
  void add_scaled(Matrix x, float scale, Matrix out) override {
    cuda::add_scaled(x, scale, out, stream_);
  }
  void softcap(Matrix x, float cap) override { cuda::softcap(x, cap, stream_); }
  void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads) override {
    cuda::head_norm(x, weight, eps, num_heads, stream_);
  }
  void gather_logit_rows(Matrix x, const StepView& step, Matrix out) override {
    cuda::gather_rows(x, step.logit_rows, out.first_rows(step.num_logit_rows), stream_);
  }
  void top_logits(Matrix logits, TopLogits* out) override {
    cuda::top_logits(logits, out, stream_);
  }
  void draw_tokens(Matrix logits,
                   const TopLogits* tops,
                   const TokenDraw* draws,
                   int32_t* tokens,
                   int32_t* staged) override {
    cuda::draw_tokens(logits, tops, draws, tokens, staged, stream_);
  }
  void take_tokens(const int32_t* drawn, int32_t* ids, int64_t count) override {
    cuda::take_tokens(drawn, ids, count, stream_);
  }

  void copy_pages(std::byte* arena,
                  int64_t page_bytes,
                  std::span<const PageId> from,
                  std::span<const PageId> to) override {
    auto* ids = staged_.as<PageId>();
    for (size_t i = 0; i < from.size(); i += kStagedPairs) {
      const size_t count = std::min<size_t>(kStagedPairs, from.size() - i);
      const auto bytes = static_cast<int64_t>(count * sizeof(PageId));
      upload(ids, &from[i], bytes);
      upload(ids + kStagedPairs, &to[i], bytes);
      cuda::copy_pages(
          arena, page_bytes, ids, ids + kStagedPairs, static_cast<int64_t>(count), stream_);
    }
  }
  void write_table(int32_t* table, const TableEntry* entries, int64_t count) override {
    cuda::write_table(table, entries, count, stream_);
  }

  // The first call runs (libraries make their handles and load their kernels then), the second
  // records a graph, further ones launch it.
  void replay(uint64_t key, const std::function<void()>& body) override {
    if (key == 0) return body();
    if (graphs_.size() >= kMostGraphs && !graphs_.contains(key)) {
      synchronize();
      graphs_.clear();
    }
    const auto [entry, is_new] = graphs_.try_emplace(key);
    if (is_new) return body();
    if (!entry->second) entry->second = cuda::record(stream_, body);
    entry->second.launch(stream_);
  }
  void synchronize() override { HW_CUDA(cudaStreamSynchronize(stream_.get())); }
  int64_t mark() override {
    marks_[static_cast<size_t>(num_marks_ % 2)].record(stream_);
    return num_marks_++;
  }
  void wait(int64_t mark) override {
    HW_CHECK(mark < num_marks_ && mark + 2 >= num_marks_, "a mark that is kept", mark, num_marks_);
    marks_[static_cast<size_t>(mark % 2)].wait();
  }
  void fetch(void* host, const void* device, int64_t bytes) override {
    HW_CUDA(cudaMemcpyAsync(
        host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, fetches_.get()));
    HW_CUDA(cudaStreamSynchronize(fetches_.get()));
  }

 private:
  // What a step brings goes through pinned memory; copying more from pageable memory does not
  // return before the bytes are copied out.
  void upload(void* device, const void* host, int64_t bytes, const cuda::Stream& stream) {
    const void* from = bytes <= cuda::UploadRing::kSlotBytes ? uploads_.put(host, bytes) : host;
    HW_CUDA(cudaMemcpyAsync(
        device, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream.get()));
    if (from != host) uploads_.sent(stream);
  }
  void multiply(const Weight& weight, const FusedLinear& product, bool add) {
    cuda::linear(on_device(weight), product, add, linear_, num_processors_, cublas_, stream_);
  }

  bool deterministic_;
  cuda::Stream stream_, fetches_, early_;
  cuda::UploadRing uploads_;
  cuda::Event early_sent_;
  cuda::Event marks_[2];
  int64_t num_marks_ = 0;
  cuda::Cublas cublas_;
  Buffer staged_;  // ids of the pages that are copied
  cuda::LinearScratch linear_;
  std::optional<cuda::WeightUpload> upload_;  // while weights are loaded
  cuda::AttentionScratch attention_;
  std::unordered_map<uint64_t, cuda::Graph> graphs_;
  int32_t num_processors_ = 0;
  int64_t device_bytes_ = 0;
  std::string description_;
};

}  // namespace

std::string cuda_obstacle() {
  int driver = 0, num_devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "no usable GPU: this machine has no NVIDIA driver";
  cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error == cudaSuccess && num_devices == 0) error = cudaErrorNoDevice;
  if (error != cudaSuccess) return std::string("no usable GPU: ") + cudaGetErrorString(error);
  if (cuda::has_kernels_for_device()) return "";
  cudaDeviceProp device{};
  HW_CUDA(cudaGetDeviceProperties(&device, 0));
  return std::string(device.name) + " has compute capability " + std::to_string(device.major) +
         "." + std::to_string(device.minor) +
         ", and this build has no code for it (HEADWATER_CUDA_ARCHITECTURES)";
}

std::unique_ptr<Ops> make_cuda_ops(const CudaOptions& options) {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty())
    throw ConfigError("device cuda: " + obstacle);
  return std::make_unique<CudaOps>(options);
}

}  // namespace headwater
