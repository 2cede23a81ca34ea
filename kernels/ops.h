// Ops: the device seam. RefOps (fp32, naive, the oracle), CpuOps, CudaOps implement it; the same
// test body runs over all of them (tests/kernels).
//
// Thread: the engine thread only. Step operations are asynchronous on one internal stream, in the
// order of the calls; synchronize() waits. They never allocate, never log, never fail: what can
// fail is refused at load. Everything a step operation reads (ids, lengths, tables) is device
// memory; no host decision is taken inside a layer.
//
// Placement means nothing: each output row depends on its own inputs only, computed in an order
// fixed by positions, so the same row gives the same bits whatever rows, pages, chunk sizes or
// threads surround it (kv-design section 3.3).
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/attention/paged_kv.h"
#include "kernels/base/tensor.h"
#include "kernels/base/thread_pool.h"
#include "kernels/quant/quant_format.h"
#include "kernels/rope/rope.h"
#include "kernels/sample/token_draw.h"

namespace headwater {

// A weight as one device wants it. Made by Ops::load_weight, used with that Ops only.
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t rows = 0;  // outputs, summed over the fused parts
  int64_t cols = 0;  // inputs
};

// One step as flat arrays in device memory. Rows of one sequence are consecutive, with
// consecutive positions; a decode is one row, a prefill chunk several.
struct StepView {
  int32_t num_rows = 0;
  int32_t num_seqs = 0;
  int32_t num_logit_rows = 0;
  int32_t num_single_rows = 0;  // at least so many first sequences have one row each
  // No position reaches it; steps that replay() one another have the same. 0: not known.
  int32_t position_bound = 0;
  const int32_t* token_ids = nullptr;   // [num_rows]
  const int32_t* positions = nullptr;   // [num_rows]
  const int32_t* row_seq = nullptr;     // [num_rows] sequence of the step that owns the row
  const int32_t* row_begin = nullptr;   // [num_seqs + 1] first row of each sequence
  const int32_t* logit_rows = nullptr;  // [num_logit_rows] rows whose logits are wanted
  PageList pages;
};

enum class LinearMode : uint8_t { kOverwrite, kAdd };
enum class Gate : uint8_t { kSilu, kGeluTanh, kNone };

// A product with what stands before and behind it in a layer.
struct FusedLinear {
  Matrix x;                     // [m, W.cols]
  const float* norm = nullptr;  // the weight of an rms_norm before it; null: none
  float eps = 0.0f;             // of the norm
  Gate gate = Gate::kNone;      // behind it: W's rows are the gate's, then as many of what it gates
  Matrix out;                   // [m, W.rows], or half of the columns behind a gate
  Matrix normed, product;  // scratch for x normalised and for the product before the gate; neither
                           // is x or out, each may be as Ops::linear_dtype
};

struct HeadShape {
  int32_t num_heads = 0;     // query heads
  int32_t num_kv_heads = 0;  // query head h reads kv head h / (num_heads / num_kv_heads)
  int32_t head_dim = 0;
};

struct AttentionArgs {
  int32_t layer = 0;
  HeadShape heads;
  float scale = 1.0f;    // logits = scale * q.k
  float softcap = 0.0f;  // > 0: logits = softcap * tanh(logits / softcap)
  Matrix q;              // [num_rows, num_heads * head_dim], after RoPE; as Ops::linear_dtype
  Matrix out;            // [num_rows, num_heads * head_dim]; as Ops::linear_dtype
  Matrix lse;  // [num_rows, num_heads] f32, the log of each row's sum of exp(logit); data null: no
  const PageSelection* selection = nullptr;       // null: all visible pages
  const VirtualTokens* virtual_tokens = nullptr;  // null: none
};

struct DeviceBytes {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string_view name() const = 0;         // "ref", "cpu", "cuda"
  virtual std::string_view description() const = 0;  // device and instruction set, for start-up
  virtual DType activation_dtype() const = 0;
  // What linear() takes and gives without a conversion, for num_rows rows: what lies between two
  // products may be of this type. rms_norm, head_norm, add_bias, rope_append_kv (q, k and v of one
  // type), attention, silu_mul and gelu_mul read and write it; out of its range counts as its
  // largest. Everything else is of activation_dtype().
  virtual DType linear_dtype(const Weight& /*weight*/, int64_t /*num_rows*/) const {
    return activation_dtype();
  }
  virtual DType default_kv_format() const = 0;
  virtual bool supports_kv(const PageShape& page) const = 0;
  // Whether what allocate() gives can be read and written by the host.
  virtual bool memory_is_host() const { return true; }
  virtual DeviceBytes device_memory() const { return {}; }  // where memory_is_host() is false

  // ---- load time: may allocate, may throw LoadError or CudaError
  // No sequence is longer than max_tokens: bounds the scratch of attention. Once, before any step.
  virtual void reserve(int32_t /*max_tokens*/) {}
  virtual Buffer allocate(int64_t bytes) = 0;  // zeroed, 64-byte aligned
  // Host memory that download() and fetch() reach at the speed of the bus.
  virtual Buffer allocate_staging(int64_t bytes);
  // Host to device, ready for the operations called next; the host's memory may be reused at once.
  // And back, complete after wait() or synchronize(). On the CPU the device's memory is the host's.
  virtual void upload(void* device, const void* host, int64_t bytes) {
    std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  // The same to memory that no operation under way uses: the bytes need not wait for these.
  virtual void upload_early(void* device, const void* host, int64_t bytes) {
    upload(device, host, bytes);
  }
  virtual void download(void* host, const void* device, int64_t bytes) {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
  // Parts with the same cols are fused: the output columns are the parts' rows, one after another.
  // The views must stay valid as long as the weight.
  virtual std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) = 0;

  // ---- step operations
  // out[i, :] = row token_ids[i] of table (single part), times scale.  out: [num_rows, cols]
  virtual void embed(const Weight& table, const StepView& step, float scale, Matrix out) = 0;
  // out = x / sqrt(mean(x^2) + eps) * weight, weight: [cols] f32. out may be x.
  virtual void rms_norm(Matrix x, const float* weight, float eps, Matrix out) = 0;
  // The same over each head of a row by itself, in place.
  // x: [num_rows, num_heads * head_dim], weight: [head_dim] f32
  virtual void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads) = 0;
  // out (+)= x * W^T.  x: [m, W.cols], out: [m, W.rows]
  virtual void linear(const Weight& weight, Matrix x, Matrix out, LinearMode mode) = 0;
  // rms_norm, linear and the gate; a device may do in one what is here in three, to the same bits
  // where linear_dtype is activation_dtype.
  virtual void fused_linear(const Weight& weight, const FusedLinear& args) {
    if (args.norm != nullptr) rms_norm(args.x, args.norm, args.eps, args.normed);
    linear(weight,
           args.norm != nullptr ? args.normed : args.x,
           args.gate == Gate::kNone ? args.out : args.product,
           LinearMode::kOverwrite);
    if (args.gate == Gate::kSilu) silu_mul(args.product, args.out);
    if (args.gate == Gate::kGeluTanh) gelu_mul(args.product, args.out);
  }
  // x[r, :] += bias[:], bias: [cols] f32
  virtual void add_bias(Matrix x, const float* bias) = 0;
  // out += scale * x, of one shape
  virtual void add_scaled(Matrix x, float scale, Matrix out) = 0;
  // cos and sin of every row's angles, once per distinct RopeSpec and step.
  // out: [num_rows, rotary_dim]: rotary_dim/2 cosines, then rotary_dim/2 sines, magnitude applied
  virtual void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out) = 0;
  // Rotates q and k in place, appends k and v of every row to its page of this layer.
  // q: [num_rows, num_heads * head_dim], k and v: [num_rows, num_kv_heads * head_dim]
  // angles: from rope_angles; rows = 0: this layer has no RoPE.
  virtual void rope_append_kv(int32_t layer,
                              const HeadShape& heads,
                              const RopeSpec& rope,
                              const StepView& step,
                              Matrix angles,
                              Matrix q,
                              Matrix k,
                              Matrix v) = 0;
  // For every row at the first position of a block b > 0, in the groups that compensate: the record
  // of b = the record of b - 1 (b > 1) + the sums over the positions of block b - 1 that are no
  // sinks, of K and V as stored. After rope_append_kv, before attention.
  // Source: RazorAttention (arXiv 2407.15891), section 3.3, folded by blocks.
  virtual void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step) = 0;
  virtual void attention(const AttentionArgs& args, const StepView& step) = 0;
  // out = silu(gate) * up.  gate_up: [m, 2 * n], gate first; out: [m, n]
  virtual void silu_mul(Matrix gate_up, Matrix out) = 0;
  // out = gelu(gate) * up, by gelu's approximation with tanh. Shapes as silu_mul.
  virtual void gelu_mul(Matrix gate_up, Matrix out) = 0;
  // x = cap * tanh(x / cap)
  virtual void softcap(Matrix x, float cap) = 0;
  // out[i, :] = x[step.logit_rows[i], :]
  virtual void gather_logit_rows(Matrix x, const StepView& step, Matrix out) = 0;
  // out[i] = the likeliest of row i.  logits: [m, vocab_size], out: [m] in device memory
  virtual void top_logits(Matrix logits, TopLogits* out);
  // tokens[i] = what draws[i] takes from row i, or kUndecided. tops: of the same rows; all [m] in
  // device memory. staged: staging memory that gets the tokens too; null: none
  virtual void draw_tokens(Matrix logits,
                           const TopLogits* tops,
                           const TokenDraw* draws,
                           int32_t* tokens,
                           int32_t* staged);
  // ids[i] = drawn[-1 - ids[i]] where ids[i] < 0: tokens that the host does not know yet. Undecided
  // ones become 0.  ids: [count]
  virtual void take_tokens(const int32_t* drawn, int32_t* ids, int64_t count);
  // Whole pages or records of page_bytes: from -> to, for copy on write.
  virtual void copy_pages(std::byte* arena,
                          int64_t page_bytes,
                          std::span<const PageId> from,
                          std::span<const PageId> to) = 0;
  // table[offset] = page for every entry; entries of the same offset hold the same page.
  // entries: [count] in device memory
  virtual void write_table(int32_t* table, const TableEntry* entries, int64_t count) {
    for (int64_t i = 0; i < count; ++i) table[entries[i].offset] = entries[i].page;
  }
  // The step operations that body calls; a device may have recorded them in an earlier call with
  // the same key and launch them as one, without calling body. The same key means: the same
  // operations with the same arguments, from the same buffers. Key 0: nothing is kept.
  virtual void replay(uint64_t /*key*/, const std::function<void()>& body) { body(); }
  virtual void synchronize() = 0;
  // A place in the order of the calls; wait() returns when all before it is done. Only the last two
  // marks are kept.
  virtual int64_t mark() { return 0; }
  virtual void wait(int64_t /*mark*/) {}
  // Copies what is complete, past operations that are not, and returns when it is there.
  virtual void fetch(void* host, const void* device, int64_t bytes) {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
};

// The pool is not owned and may be shared; it must outlive the Ops.
std::unique_ptr<Ops> make_ref_ops(ThreadPool& pool);
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);

// Why make_cuda_ops() would refuse (built without CUDA, no driver, no GPU of a compiled
// architecture), or "".
std::string cuda_obstacle();
struct CudaOptions {
  // A row's bits depend on its own inputs only, as on the CPU: fixed splits and no tensor cores. Up
  // to 4 rows of a step; beyond, how many rows there are picks the product's shape.
  bool deterministic = false;
};
// The first visible GPU. Throws ConfigError with the obstacle.
std::unique_ptr<Ops> make_cuda_ops(const CudaOptions& options = {});

}  // namespace headwater
