// RefOps: fp32, naive, the oracle of every kernel test. Never tuned: each loop reads like the
// formula in ops.h. Threads only share out independent rows; no sum crosses them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/host_buffer.h"
#include "kernels/ops.h"
#include "kernels/ops_host.h"

namespace headwater {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct RefWeight final : Weight {
  std::vector<WeightView> parts;
};

const RefWeight& ref(const Weight& weight) { return static_cast<const RefWeight&>(weight); }

void decode_row(const WeightView& view, int64_t row, float* out) {
  const QuantTraits& traits = quant_traits(view.format);
  const auto* bytes = static_cast<const std::byte*>(view.data);
  traits.decode(
      bytes + row * row_bytes(view.format, view.cols), view.cols / traits.block_elements, out);
}

// Sixteen running sums, so that rounding does not grow with the length.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int kSums = 16;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int s = 0; s < kSums; ++s) sums[s] += a[i + s] * b[i + s];
  for (; i < n; ++i) sums[i % kSums] += a[i] * b[i];
  float total = 0;
  for (float sum : sums) total += sum;
  return total;
}

float load_scalar(const std::byte* base, DType format, int64_t index) {
  if (format == DType::kF32) return reinterpret_cast<const float*>(base)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(base)[index];
  return format == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

void store_scalar(std::byte* base, DType format, int64_t index, float value) {
  if (format == DType::kF32) {
    reinterpret_cast<float*>(base)[index] = value;
  } else {
    reinterpret_cast<uint16_t*>(base)[index] =
        format == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
}

// One head of one sequence: where its tokens lie. K is [page_tokens, head_dim], V likewise.
struct HeadPages {
  const PageList& list;
  const KvGroupShape& group;
  const int32_t* table;  // [logical page, head slot]
  int32_t slot;

  HeadPages(
      const PageList& pages, int32_t num_kv_heads, int32_t layer, int32_t kv_head, int32_t seq)
      : list(pages),
        group(pages.groups[pages.heads[layer * num_kv_heads + kv_head].group]),
        table(pages.tables + pages.table_begin[int64_t{seq} * pages.num_groups +
                                               pages.heads[layer * num_kv_heads + kv_head].group]),
        slot(pages.heads[layer * num_kv_heads + kv_head].slot) {}

  int32_t group_idx() const { return static_cast<int32_t>(&group - list.groups); }
  std::byte* k_at(int32_t position) const {
    const PageId page = table[int64_t{position / group.page.page_tokens} * group.num_heads + slot];
    HW_CHECK(page >= 0, "attention reads or writes a hole at position", position);
    return list.arena + page * kPageGranuleBytes +
           int64_t{position % group.page.page_tokens} * group.page.head_dim *
               dtype_bytes(group.page.format);
  }
  std::byte* v_at(int32_t position) const { return k_at(position) + group.page.k_bytes(); }
  float* record_at(int32_t block) const {  // K sums, then V sums: [2, head_dim]
    const PageId page = table[group.record_begin + int64_t{block} * group.num_heads + slot];
    HW_CHECK(page >= 0, "a record is read or written that is not there, block", block);
    return reinterpret_cast<float*>(list.arena + page * kPageGranuleBytes);
  }
};

class RefOps final : public Ops {
 public:
  explicit RefOps(ThreadPool& pool)
      : pool_(pool),
        description_("reference, fp32, " + std::to_string(pool.num_threads()) + " threads") {}

  std::string_view name() const override { return "ref"; }
  std::string_view description() const override { return description_; }
  DType activation_dtype() const override { return DType::kF32; }
  DType default_kv_format() const override { return DType::kF32; }
  bool supports_kv(const PageShape& page) const override {
    return page.head_dim > 0 && page.page_tokens > 0;
  }

  Buffer allocate(int64_t bytes) override { return allocate_host(bytes); }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    auto weight = std::make_unique<RefWeight>();
    for (const WeightView& part : parts) {
      HW_CHECK(part.cols == parts[0].cols, "fused parts differ in their inputs", part.cols);
      weight->parts.push_back(part);
      weight->rows += part.rows;
    }
    weight->cols = parts[0].cols;
    return weight;
  }

  void embed(const Weight& table, const StepView& step, float scale, Matrix out) override {
    for (int32_t r = 0; r < step.num_rows; ++r) {
      decode_row(ref(table).parts[0], step.token_ids[r], out.f32_row(r));
      for (int64_t c = 0; c < out.cols; ++c) out.f32_row(r)[c] *= scale;
    }
  }

  void rms_norm(Matrix x, const float* weight, float eps, Matrix out) override {
    for (int64_t r = 0; r < x.rows; ++r) {
      const float* in = x.f32_row(r);
      double sum = 0;
      for (int64_t c = 0; c < x.cols; ++c) sum += double{in[c]} * in[c];
      const double scale = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + double{eps});
      for (int64_t c = 0; c < x.cols; ++c)
        out.f32_row(r)[c] = static_cast<float>(in[c] * scale) * weight[c];
    }
  }

  void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads) override {
    const int64_t head_dim = x.cols / num_heads;
    for (int32_t h = 0; h < num_heads; ++h) {
      const Matrix head = x.columns(h * head_dim, head_dim);
      rms_norm(head, weight, eps, head);
    }
  }

  void linear(const Weight& weight, Matrix x, Matrix out, LinearMode mode) override {
    int64_t first_col = 0;
    for (const WeightView& part : ref(weight).parts) {
      constexpr int64_t kRowsPerTask = 64;
      pool_.parallel_for((part.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
        std::vector<float> w(static_cast<size_t>(part.cols));
        const int64_t end = std::min((task + 1) * kRowsPerTask, part.rows);
        for (int64_t n = task * kRowsPerTask; n < end; ++n) {
          decode_row(part, n, w.data());
          for (int64_t m = 0; m < x.rows; ++m) {
            float& y = out.f32_row(m)[first_col + n];
            const float product = dot(x.f32_row(m), w.data(), part.cols);
            y = mode == LinearMode::kAdd ? y + product : product;
          }
        }
      });
      first_col += part.rows;
    }
  }

  void add_bias(Matrix x, const float* bias) override {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) x.f32_row(r)[c] += bias[c];
  }

  void add_scaled(Matrix x, float scale, Matrix out) override {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) out.f32_row(r)[c] += scale * x.f32_row(r)[c];
  }

  void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out) override {
    const int32_t half = rope.rotary_dim / 2;
    for (int32_t r = 0; r < step.num_rows; ++r) {
      for (int32_t i = 0; i < half; ++i) {
        const double angle = step.positions[r] * rope.inv_freq[static_cast<size_t>(i)];
        out.f32_row(r)[i] = static_cast<float>(std::cos(angle)) * rope.magnitude;
        out.f32_row(r)[half + i] = static_cast<float>(std::sin(angle)) * rope.magnitude;
      }
    }
  }

  void rope_append_kv(int32_t layer,
                      const HeadShape& heads,
                      const RopeSpec& rope,
                      const StepView& step,
                      Matrix angles,
                      Matrix q,
                      Matrix k,
                      Matrix v) override {
    const auto rotate = [&](float* x, int32_t row) {
      if (angles.rows == 0) return;
      const int32_t half = rope.rotary_dim / 2;
      const bool adjacent = rope.pairing == RopePairing::kAdjacent;
      for (int32_t i = 0; i < half; ++i) {
        float& a = x[adjacent ? 2 * i : i];
        float& b = x[adjacent ? 2 * i + 1 : i + half];
        const float cosine = angles.f32_row(row)[i];
        const float sine = angles.f32_row(row)[half + i];
        const float rotated_a = a * cosine - b * sine;
        b = a * sine + b * cosine;
        a = rotated_a;
      }
    };
    for (int32_t r = 0; r < step.num_rows; ++r) {
      for (int32_t h = 0; h < heads.num_heads; ++h) rotate(q.f32_row(r) + h * heads.head_dim, r);
      for (int32_t h = 0; h < heads.num_kv_heads; ++h) {
        float* key = k.f32_row(r) + h * heads.head_dim;
        const float* value = v.f32_row(r) + h * heads.head_dim;
        rotate(key, r);
        const HeadPages pages(step.pages, heads.num_kv_heads, layer, h, step.row_seq[r]);
        std::byte* k_out = pages.k_at(step.positions[r]);
        std::byte* v_out = pages.v_at(step.positions[r]);
        for (int32_t d = 0; d < heads.head_dim; ++d) {
          store_scalar(k_out, pages.group.page.format, d, key[d]);
          store_scalar(v_out, pages.group.page.format, d, value[d]);
        }
      }
    }
  }

  void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step) override {
    const int32_t head_dim = heads.head_dim;
    for (int32_t r = 0; r < step.num_rows; ++r) {
      for (int32_t h = 0; h < heads.num_kv_heads; ++h) {
        const HeadPages pages(step.pages, heads.num_kv_heads, layer, h, step.row_seq[r]);
        const KvGroupShape& group = pages.group;
        const int32_t block = step.positions[r] / group.block_tokens;
        const int32_t first = block * group.block_tokens;
        if (group.record_begin < 0 || block == 0 || first != step.positions[r]) continue;
        std::vector<float> sums(static_cast<size_t>(2 * head_dim), 0.0f);
        for (int32_t p = std::max(first - group.block_tokens, group.sink_tokens); p < first; ++p) {
          for (int32_t d = 0; d < head_dim; ++d) {
            sums[static_cast<size_t>(d)] += load_scalar(pages.k_at(p), group.page.format, d);
            sums[static_cast<size_t>(head_dim + d)] +=
                load_scalar(pages.v_at(p), group.page.format, d);
          }
        }
        float* record = pages.record_at(block);
        for (size_t i = 0; i < sums.size(); ++i)
          record[i] = block > 1 ? pages.record_at(block - 1)[i] + sums[i] : sums[i];
      }
    }
  }

  void attention(const AttentionArgs& args, const StepView& step) override {
    const int64_t tasks = int64_t{step.num_rows} * args.heads.num_heads;
    pool_.parallel_for(tasks, [&](int64_t task, int) {
      attend(args,
             step,
             static_cast<int32_t>(task / args.heads.num_heads),
             static_cast<int32_t>(task % args.heads.num_heads));
    });
  }

  void silu_mul(Matrix gate_up, Matrix out) override {
    for (int64_t r = 0; r < out.rows; ++r) {
      for (int64_t c = 0; c < out.cols; ++c) {
        const float gate = gate_up.f32_row(r)[c];
        out.f32_row(r)[c] = gate / (1.0f + std::exp(-gate)) * gate_up.f32_row(r)[out.cols + c];
      }
    }
  }

  void gelu_mul(Matrix gate_up, Matrix out) override {
    constexpr float kRootTwoOverPi = 0.7978845608f;
    for (int64_t r = 0; r < out.rows; ++r) {
      for (int64_t c = 0; c < out.cols; ++c) {
        const float gate = gate_up.f32_row(r)[c];
        const float inner = kRootTwoOverPi * (gate + 0.044715f * gate * gate * gate);
        out.f32_row(r)[c] =
            0.5f * gate * (1.0f + std::tanh(inner)) * gate_up.f32_row(r)[out.cols + c];
      }
    }
  }

  void softcap(Matrix x, float cap) override {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) x.f32_row(r)[c] = cap * std::tanh(x.f32_row(r)[c] / cap);
  }

  void gather_logit_rows(Matrix x, const StepView& step, Matrix out) override {
    gather_logit_rows_host(x, step, out);
  }

  void copy_pages(std::byte* arena,
                  int64_t page_bytes,
                  std::span<const PageId> from,
                  std::span<const PageId> to) override {
    copy_pages_host(arena, page_bytes, from, to);
  }

  void synchronize() override {}

 private:
  // One query row of one head: every visible position, in order, then the virtual tokens.
  static void attend(const AttentionArgs& args, const StepView& step, int32_t row, int32_t head) {
    const HeadShape& heads = args.heads;
    const int32_t head_dim = heads.head_dim;
    const int32_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
    const int32_t seq = step.row_seq[row];
    const int32_t position = step.positions[row];
    const HeadPages pages(step.pages, heads.num_kv_heads, args.layer, kv_head, seq);
    const KvGroupShape& group = pages.group;
    const int32_t window_start =
        step.pages.window_start[int64_t{pages.group_idx()} * step.num_rows + row];
    const float* q = args.q.f32_row(row) + head * head_dim;

    struct Item {
      float logit;
      const std::byte* v;      // a token of a page ...
      const float* virtual_v;  // ... or a virtual token
    };
    std::vector<Item> items;
    const auto add = [&](float product, float bias, const std::byte* v, const float* virtual_v) {
      float logit = args.scale * product;
      if (args.softcap > 0) logit = args.softcap * std::tanh(logit / args.softcap);
      items.push_back({logit + bias, v, virtual_v});
    };
    const auto add_page = [&](int32_t page, float bias) {
      const int32_t first = page * group.page.page_tokens;
      const int32_t end = std::min(first + group.page.page_tokens, position + 1);
      for (int32_t p = first; p < end; ++p) {
        if (p < window_start && !group.permanent(p)) continue;
        const std::byte* k = pages.k_at(p);
        float product = 0;
        for (int32_t d = 0; d < head_dim; ++d)
          product += q[d] * load_scalar(k, group.page.format, d);
        add(product, bias, pages.v_at(p), nullptr);
      }
    };
    if (const PageSelection* selection = args.selection) {
      const int64_t list = int64_t{selection->row_block[row]} * heads.num_kv_heads + kv_head;
      for (int32_t i = selection->begin[list]; i < selection->begin[list + 1]; ++i)
        add_page(selection->pages[i], selection->bias != nullptr ? selection->bias[i] : 0.0f);
    } else {
      for (int32_t page = 0; page <= position / group.page.page_tokens; ++page)
        add_page(page, 0.0f);
    }
    std::vector<float> mean;  // of the positions folded: K, then V
    if (const int32_t folded = window_start - group.sink_tokens;
        group.record_begin >= 0 && folded > 0) {
      const float* record = pages.record_at(window_start / group.block_tokens);
      for (int32_t i = 0; i < 2 * head_dim; ++i)
        mean.push_back(record[i] / static_cast<float>(folded));
      add(dot(q, mean.data(), head_dim),
          std::log(static_cast<float>(folded)),
          nullptr,
          mean.data() + head_dim);
    }
    if (const VirtualTokens* virtuals = args.virtual_tokens) {
      const int64_t list = int64_t{seq} * heads.num_kv_heads + kv_head;
      for (int32_t i = virtuals->begin[list]; i < virtuals->begin[list + 1]; ++i)
        add(dot(q, virtuals->k + int64_t{i} * head_dim, head_dim),
            virtuals->bias[i],
            nullptr,
            virtuals->v + int64_t{i} * head_dim);
    }

    float largest = kMinusInfinity;
    for (const Item& item : items) largest = std::max(largest, item.logit);
    std::vector<double> sum(static_cast<size_t>(head_dim), 0.0);
    double total = 0;
    for (const Item& item : items) {
      const double weight =
          item.logit == kMinusInfinity ? 0.0 : std::exp(double{item.logit} - largest);
      if (weight == 0.0) continue;
      total += weight;
      for (int32_t d = 0; d < head_dim; ++d)
        sum[static_cast<size_t>(d)] +=
            weight *
            (item.v != nullptr ? load_scalar(item.v, group.page.format, d) : item.virtual_v[d]);
    }
    if (args.lse.data != nullptr)
      args.lse.f32_row(row)[head] = largest + static_cast<float>(std::log(total));
    float* out = args.out.f32_row(row) + head * head_dim;
    for (int32_t d = 0; d < head_dim; ++d)
      out[d] = total > 0 ? static_cast<float>(sum[static_cast<size_t>(d)] / total) : 0.0f;
  }

  ThreadPool& pool_;  // not owned
  std::string description_;
};

}  // namespace

std::unique_ptr<Ops> make_ref_ops(ThreadPool& pool) { return std::make_unique<RefOps>(pool); }

}  // namespace headwater
