// Echo and induction against the whole attention matrix, computed apart; the published choice.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "engine/calibrate/razor_scores.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

// [row, column] of one query head: softmax in double over every key up to the row's.
std::vector<std::vector<double>> attention_matrix(const std::vector<std::vector<float>>& q,
                                                  const std::vector<std::vector<float>>& k,
                                                  double scale) {
  std::vector<std::vector<double>> a;
  for (size_t i = 0; i < q.size(); ++i) {
    std::vector<double> row;
    double sum = 0;
    for (size_t j = 0; j <= i; ++j) {
      double product = 0;
      for (size_t d = 0; d < q[i].size(); ++d) product += double{q[i][d]} * k[j][d];
      row.push_back(std::exp(scale * product));
      sum += row.back();
    }
    for (double& weight : row) weight /= sum;
    a.push_back(row);
  }
  return a;
}

struct Recorded {  // [layer][head][position][head_dim]
  std::vector<std::vector<std::vector<std::vector<float>>>> q, k;
  double scale = 0;
};

Recorded record(Probe& probe, const std::vector<int32_t>& tokens) {
  Recorded recorded;
  const size_t layers = probe.spec().layers.size();
  recorded.q.resize(layers);
  recorded.k.resize(layers);
  probe.model().observe_attention([&](const AttentionView& view, const StepView& step) {
    const auto keep = [&](const Matrix& from, int32_t heads, auto& to) {
      to.resize(static_cast<size_t>(heads));
      std::vector<float> rows(static_cast<size_t>(step.num_rows * from.stride));
      const int64_t used = (step.num_rows - 1) * from.stride + from.cols;
      probe.ops().download(rows.data(), from.data, used * int64_t{sizeof(float)});
      probe.ops().synchronize();
      for (int64_t row = 0; row < step.num_rows; ++row)
        for (int32_t head = 0; head < heads; ++head) {
          const float* values =
              rows.data() + row * from.stride + int64_t{head} * view.heads.head_dim;
          to[static_cast<size_t>(head)].emplace_back(values, values + view.heads.head_dim);
        }
    };
    keep(view.q, view.heads.num_heads, recorded.q[static_cast<size_t>(view.layer)]);
    keep(view.k, view.heads.num_kv_heads, recorded.k[static_cast<size_t>(view.layer)]);
    recorded.scale = view.scale;
  });
  probe.read(tokens, 0);
  probe.model().observe_attention({});
  return recorded;
}

}  // namespace

TEST_CASE("Razor scores equal those read off the whole attention matrix",
          "[calibrate][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const bool has_bos = GENERATE(true, false);
  CAPTURE(*device, has_bos);
  constexpr int32_t kBlock = 37;
  constexpr int32_t kRepeats = 4;
  const auto files = make_tiny_model();
  ThreadPool pool(2);
  const auto ops = testing::make_ops(*device, pool);
  Model model(*files, *ops, {50, 8});
  Probe probe(model, *ops);
  std::vector<int32_t> ids(96);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i) + 32;
  const auto tokens = repeated_block(ids, has_bos ? kTinyBos : -1, kBlock, kRepeats, 11);
  REQUIRE(static_cast<int32_t>(tokens.size()) == kBlock * kRepeats + has_bos);

  int64_t last = 0;
  RazorScores scores =
      razor_scores(probe, tokens, kBlock, has_bos, [&](int64_t done, int64_t total) {
        REQUIRE(done > last);
        REQUIRE(done <= total);
        last = done;
      });
  REQUIRE(last == static_cast<int64_t>(tokens.size()) * 2);

  Recorded recorded = record(probe, tokens);
  const auto count = static_cast<int32_t>(tokens.size());
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t kv_head = 0; kv_head < 2; ++kv_head) {
      double best_echo = 0, best_induction = 0;
      for (int32_t query = 2 * kv_head; query < 2 * kv_head + 2; ++query) {
        const auto a =
            attention_matrix(recorded.q[layer][query], recorded.k[layer][kv_head], recorded.scale);
        double echo = 0, induction = 0;
        // By what the tokens are, not by where: an earlier place of a block at the same offset.
        const int32_t bos = has_bos ? 1 : 0;
        for (int32_t row = bos + kBlock; row < count; ++row) {
          for (int32_t column = bos; column < row; ++column) {
            if ((column - bos) % kBlock == (row - bos) % kBlock) {
              REQUIRE(tokens[column] == tokens[row]);
              echo += a[row][column];
              induction += a[row][column + 1];
            }
          }
        }
        best_echo = std::max(best_echo, echo / (count - bos - kBlock));
        best_induction = std::max(best_induction, induction / (count - bos - kBlock));
      }
      CHECK(scores.echo.at(layer, kv_head) ==
            Approx(best_echo).epsilon(device->name == "ref" ? 1e-4 : 2e-2));
      CHECK(scores.induction.at(layer, kv_head) ==
            Approx(best_induction).epsilon(device->name == "ref" ? 1e-4 : 2e-2));
    }
  }
}

TEST_CASE("Razor's choice: global parts, rounded up, the union of both", "[calibrate][unit]") {
  RazorScores scores{{4, 3}, {4, 3}};  // 12 heads: 14 % = 2, 1 % = 1
  for (int i = 0; i < 12; ++i) {
    scores.induction.values[i] = i == 4 ? 0.9 : i == 7 ? 0.5 : 0.01 * i;
    scores.echo.values[i] = i == 2 ? 0.3 : 0.0;
  }
  RazorChoice choice = choose_razor(scores, 0.14, 0.01);
  CHECK(choice.num_full == 3);
  CHECK(std::vector<int32_t>(choice.ranking.begin(), choice.ranking.begin() + 5) ==
        std::vector<int32_t>{4, 7, 2, 11, 10});
  CHECK(choice.ranking.size() == 12);
  CHECK(std::set<int32_t>(choice.ranking.begin(), choice.ranking.end()).size() == 12);

  scores.echo.values[7] = 0.8;  // a head that does both is one head
  CHECK(choose_razor(scores, 0.14, 0.01).num_full == 2);
  CHECK(choose_razor(scores, 0, 0).num_full == 0);
  CHECK(choose_razor(scores, 1, 1).num_full == 12);
}

TEST_CASE("Ordinary tokens give themselves; blocks repeat", "[calibrate][unit]") {
  const auto files = make_tiny_model();
  const auto tokenizer = make_tokenizer(files->vocabulary);
  const std::vector<int32_t> ids = ordinary_tokens(*tokenizer);
  REQUIRE(ids.size() >= 95);
  for (const int32_t id : ids) {
    CHECK_FALSE(tokenizer->is_control(id));
    CHECK(tokenizer->encode(tokenizer->token_bytes(id, false), false, false) ==
          std::vector<int32_t>{id});
  }
  CHECK_FALSE(std::ranges::count(ids, int32_t{'\n'}));
  const auto tokens = repeated_block(ids, kTinyBos, 20, 3, 1);
  CHECK(tokens[0] == kTinyBos);
  CHECK(std::equal(tokens.begin() + 1, tokens.begin() + 41, tokens.begin() + 21));
  CHECK(repeated_block(ids, kTinyBos, 20, 3, 2) != tokens);
}
