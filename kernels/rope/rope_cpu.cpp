#include "kernels/rope/rope_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention/paged_kv_cpu.h"

namespace headwater::cpu {
namespace {

constexpr int64_t kRowsPerTask = 8;

template <typename Body>
void for_rows(int32_t rows, ThreadPool& pool, const Body& body) {
  pool.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min<int64_t>((task + 1) * kRowsPerTask, rows);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(static_cast<int32_t>(row));
  });
}

void rotate(const RopeSpec& rope, const float* angles, float* x) {
  const int32_t half = rope.rotary_dim / 2;
  const bool adjacent = rope.pairing == RopePairing::kAdjacent;
  const int32_t step = adjacent ? 2 : 1;
  const int32_t distance = adjacent ? 1 : half;
  for (int32_t i = 0; i < half; ++i) {
    const float a = x[i * step];
    const float b = x[i * step + distance];
    const float cosine = angles[i];
    const float sine = angles[half + i];
    x[i * step] = a * cosine - b * sine;
    x[i * step + distance] = a * sine + b * cosine;
  }
}

template <typename T, T (*convert)(float)>
void append(
    const float* k, const float* v, int32_t head_dim, int32_t lane, void* k_out, void* v_out) {
  auto* keys = static_cast<T*>(k_out) + lane;
  auto* values = static_cast<T*>(v_out);
  for (int32_t d = 0; d < head_dim; ++d) {
    keys[int64_t{d} * kGroupTokens] = convert(k[d]);
    values[d] = convert(v[d]);
  }
}

float keep_f32(float value) { return value; }

}  // namespace

void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out, ThreadPool& pool) {
  const int32_t half = rope.rotary_dim / 2;
  for_rows(step.num_rows, pool, [&](int32_t row) {
    float* angles = out.f32_row(row);
    for (int32_t i = 0; i < half; ++i) {
      const double angle = step.positions[row] * rope.inv_freq[static_cast<size_t>(i)];
      angles[i] = static_cast<float>(std::cos(angle)) * rope.magnitude;
      angles[half + i] = static_cast<float>(std::sin(angle)) * rope.magnitude;
    }
  });
}

void rope_append_kv(int32_t layer,
                    const HeadShape& heads,
                    const RopeSpec& rope,
                    const StepView& step,
                    Matrix angles,
                    Matrix q,
                    Matrix k,
                    Matrix v,
                    ThreadPool& pool) {
  for_rows(step.num_rows, pool, [&](int32_t row) {
    const int32_t head_dim = heads.head_dim;
    const bool rotates = angles.rows > 0;
    if (rotates) {
      for (int32_t h = 0; h < heads.num_heads; ++h)
        rotate(rope, angles.f32_row(row), q.f32_row(row) + h * head_dim);
    }
    const int32_t position = step.positions[row];
    const int32_t lane = position % kGroupTokens;
    for (int32_t h = 0; h < heads.num_kv_heads; ++h) {
      float* key = k.f32_row(row) + h * head_dim;
      const float* value = v.f32_row(row) + h * head_dim;
      if (rotates) rotate(rope, angles.f32_row(row), key);
      const HeadPages pages(step.pages, layer, heads.num_kv_heads, h, step.row_seq[row]);
      std::byte* k_out = pages.k_group(position);
      std::byte* v_out = pages.v_token(position);
      switch (pages.group->page.format) {
        case DType::kF32:
          append<float, keep_f32>(key, value, head_dim, lane, k_out, v_out);
          break;
        case DType::kF16:
          append<uint16_t, f32_to_f16>(key, value, head_dim, lane, k_out, v_out);
          break;
        case DType::kBF16:
          append<uint16_t, f32_to_bf16>(key, value, head_dim, lane, k_out, v_out);
          break;
      }
    }
  });
}

}  // namespace headwater::cpu
