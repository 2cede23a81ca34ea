// Every architecture against Hugging Face transformers in fp32, on tiny random models
// (make_arch_goldens.py), from both kinds of files, through the cache: prompts in chunks, pages
// behind a layer's window given back, lengths beyond every window and every original RoPE context.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "engine/attention/policy_table.h"
#include "engine/execute/executor.h"
#include "engine/model/arch/arch_table.h"
#include "engine/schedule/step_plan.h"
#include "kernels/make_ops.h"
#include "tests/golden/arch_checkpoint.h"
#include "tests/support/skip.h"

namespace headwater {
namespace {

using testing::Json;
using testing::TempFolder;

const Json& goldens() {
  static const Json all = [] {
    std::ifstream in(std::string(HW_SOURCE_DIR) + "/tests/data/golden/archs.json");
    return Json::parse(in);
  }();
  return all;
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const Json& golden : goldens().at("cases")) names.push_back(golden.at("name"));
  return names;
}

const Json& case_named(const std::string& name) {
  for (const Json& golden : goldens().at("cases"))
    if (golden.at("name") == name) return golden;
  throw std::runtime_error(name);
}

struct Device {
  const char* ops;
  DType kv;
};
constexpr Device kRef{"ref", DType::kF32}, kCpu{"cpu", DType::kF32}, kCpuHalf{"cpu", DType::kF16};
constexpr Device kCuda{"cuda", DType::kF32}, kCudaHalf{"cuda", DType::kF16};

// Logits of every position of the ids, in chunks of `chunk` rows.
std::vector<std::vector<float>> logits_of(const LoadedModel& files,
                                          const Device& device,
                                          const std::vector<int32_t>& ids,
                                          int32_t chunk) {
  constexpr int32_t kPageTokens = 16;
  ThreadPool pool(2);
  const auto ops = make_ops(device.ops, pool);
  const ModelSpec& spec = files.spec;
  const HeadShape& heads = spec.layers[0].heads;
  std::vector<kv::RetentionRule> rules(spec.layers.size() *
                                       static_cast<size_t>(heads.num_kv_heads));
  fit_to_layers(spec, rules);
  const PageShape page{device.kv, heads.head_dim, kPageTokens, 0};
  REQUIRE(ops->supports_kv(page));
  const auto length = static_cast<int32_t>(ids.size());
  kv::KvGeometry geometry(
      static_cast<int32_t>(spec.layers.size()), heads.num_kv_heads, rules, page);
  // No page more than the bound says: what a window has passed must come back.
  const int64_t superblock = page.page_bytes();
  const int64_t arena = geometry.peak_bytes(length, {}, chunk);
  kv::KvManager kv(std::move(geometry), {arena, superblock, 1, length, false});
  Model model(files, *ops, {chunk, chunk});
  Executor executor(model, *ops, kv, arena, 1, false);

  Request draws_nothing;
  draws_nothing.sampling.max_tokens = 0;
  Sequence seq;
  seq.request = std::make_shared<const Request>(draws_nothing);
  seq.tokens = ids;
  seq.num_prompt = length;
  seq.rules.key_space = !spec.long_ropes.empty() && length > spec.long_after ? 1 : 0;
  seq.kv = kv.create(seq.rules);
  std::vector<std::vector<float>> rows;
  StepPlan plan;
  while (seq.num_remaining() > 0) {
    PlannedRows planned;
    planned.seq = &seq;
    planned.first_position = seq.kv.num_tokens();
    planned.num_rows = planned.num_logit_rows = std::min(chunk, seq.num_remaining());
    plan.sequences = {planned};
    REQUIRE(kv.reserve(seq.kv, planned.end()));
    flatten(plan, kv);
    executor.enqueue(plan);
    executor.wait();
    const Matrix logits = executor.fetch_logits(plan.logit_rows);
    for (int64_t row = 0; row < logits.rows; ++row)
      rows.emplace_back(logits.f32_row(row), logits.f32_row(row) + logits.cols);
    kv.commit(seq.kv, std::span(ids).first(static_cast<size_t>(planned.end())));
  }
  kv.release(seq.kv);
  return rows;
}

struct Distance {
  double largest = 0;    // difference of a logit, over what is kept of a case's prompts
  double deviation = 0;  // of the logits, the most of a position's
};

Distance distance(const LoadedModel& files,
                  const Device& device,
                  const Json& golden,
                  int32_t chunk = 24) {
  const size_t every = goldens().at("every");
  Distance d;
  for (const Json& prompt : golden.at("prompts")) {
    const auto got = logits_of(files, device, prompt.at("ids"), chunk);
    const std::vector<size_t> positions = prompt.at("positions");
    for (size_t i = 0; i < positions.size(); ++i) {
      const std::vector<double> expected = prompt.at("logits").at(i);
      double sum = 0, squares = 0;
      for (size_t j = 0; j < expected.size(); ++j) {
        d.largest = std::max(d.largest, std::abs(got[positions[i]][j * every] - expected[j]));
        sum += expected[j];
        squares += expected[j] * expected[j];
      }
      const auto n = static_cast<double>(expected.size());
      d.deviation = std::max(d.deviation, std::sqrt(squares / n - sum * sum / (n * n)));
    }
  }
  return d;
}

void check_case(const std::string& path, const Json& golden, const char* container) {
  const auto files = load_model(path);
  const Distance ref = distance(*files, kRef, golden);
  const Distance cpu = distance(*files, kCpu, golden);
  const Distance half = distance(*files, kCpuHalf, golden);
  std::printf("%-18s %-11s ref %.1e, cpu %.1e, with K and V in f16 %.1e; logits' deviation %.1f\n",
              golden.at("name").get<std::string>().c_str(),
              container,
              ref.largest,
              cpu.largest,
              half.largest,
              ref.deviation);
  CHECK(ref.largest <= 1e-3);
  CHECK(cpu.largest <= 1e-3);
  CHECK(half.largest <= 0.02 * half.deviation);
}

TEST_CASE("Golden: every architecture from both kinds of files", "[golden][unit]") {
  const std::string name = GENERATE(from_range(case_names()));
  CAPTURE(name);
  const Json& golden = case_named(name);
  const TempFolder folder;
  const bool sharded = name.size() % 2 == 0;
  testing::write_hf_folder(golden, folder, sharded);
  check_case(folder.path().string(), golden, sharded ? "shards" : "safetensors");
  if (golden.at("config").contains("text_config")) {
    const TempFolder resaved;
    testing::write_hf_folder(golden, resaved, false, testing::Spelling::kResaved);
    check_case(resaved.path().string(), golden, "resaved");
  }
  const std::string gguf = testing::gguf_of(golden);
  if (!gguf.empty()) check_case(folder.add("m.gguf", gguf), golden, "GGUF");
}

// The layers' matrices as f16, kept in the result.
std::vector<std::vector<uint16_t>> round_matrices(LoadedModel& files) {
  std::vector<std::vector<uint16_t>> kept;
  for (LayerWeights& w : files.weights.layers) {
    for (WeightView* view : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down}) {
      REQUIRE(view->format == QuantFormat::kF32);
      std::vector<uint16_t>& halves = kept.emplace_back();
      for (int64_t i = 0; i < view->rows * view->cols; ++i)
        halves.push_back(f32_to_f16(static_cast<const float*>(view->data)[i]));
      view->format = QuantFormat::kF16;
      view->data = halves.data();
    }
  }
  return kept;
}

TEST_CASE("Golden: every architecture on the GPU", "[golden][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) {
    testing::skip(obstacle);
    return;
  }
  const std::string name = GENERATE(from_range(case_names()));
  CAPTURE(name);
  const Json& golden = case_named(name);
  const TempFolder folder;
  testing::write_hf_folder(golden, folder, false);
  const auto files = load_model(folder.path().string());
  const Distance few = distance(*files, kCuda, golden, 4);  // so few rows: products in fp32
  const Distance full = distance(*files, kCuda, golden);
  const Distance half = distance(*files, kCudaHalf, golden);
  const auto matrices = round_matrices(*files);
  const Distance narrow = distance(*files, kCudaHalf, golden);  // activations in f16
  std::printf(
      "%-18s GPU %.1e, through TF32 %.1e, with K and V in f16 %.1e, all in f16 %.1e; "
      "deviation %.1f\n",
      name.c_str(),
      few.largest,
      full.largest,
      half.largest,
      narrow.largest,
      full.deviation);
  CHECK(few.largest <= 1e-3);
  // RefOps with both factors of its products rounded to TF32 is up to 0.017 away (phi3-longrope).
  CHECK(full.largest <= 0.02 * full.deviation);
  CHECK(half.largest <= 0.02 * half.deviation);
  // RefOps on such weights and pages, with what lies between its products rounded to f16, is up to
  // 0.029 away (phi3-longrope; mistral-window 0.027, all others below 0.015).
  CHECK(narrow.largest <= 0.03 * narrow.deviation);
}

TEST_CASE("Golden: every row of the table has a case", "[golden][unit]") {
  std::vector<std::string> types;
  for (const Json& golden : goldens().at("cases"))
    types.push_back(golden.at("config").at("model_type"));
  for (const Arch* arch : arch_table()) CHECK(std::ranges::count(types, arch->hf_name) > 0);
}

TEST_CASE("Golden: chunks change no bit where layers see windows", "[golden][unit]") {
  for (const char* name : {"gemma3", "gemma2", "mistral-window", "phi3-longrope"}) {
    CAPTURE(name);
    const Json& golden = case_named(name);
    const TempFolder folder;
    testing::write_hf_folder(golden, folder, false);
    const auto files = load_model(folder.path().string());
    const std::vector<int32_t> ids = golden.at("prompts").back().at("ids");
    for (const Device& device : {kRef, kCpuHalf}) {
      const auto whole = logits_of(*files, device, ids, static_cast<int32_t>(ids.size()));
      for (const int32_t chunk : {1, 7, 32}) CHECK(logits_of(*files, device, ids, chunk) == whole);
    }
  }
}

}  // namespace
}  // namespace headwater
