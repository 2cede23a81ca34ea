#include "engine/attention/head_table_published.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/io/json_object.h"
#include "engine/io/mapped_file.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

constexpr int32_t kMoaSinks = 64;
constexpr int32_t kMoaBlock = 64;
constexpr int32_t kMoaLeastSpan = 128;
constexpr int32_t kMaxTokens = 16 << 20;
constexpr int32_t kMaxAlpha = kMaxTokens - kMoaSinks;  // so that what is written reads back

[[noreturn]] void fail(const std::string& name, const std::string& what) {
  throw ConfigError("head table " + name + ": " + what);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

double gate_of(std::string_view field, const std::string& name, const std::string& where) {
  while (!field.empty() && (field.back() == '\r' || field.back() == ' ')) field.remove_suffix(1);
  double gate = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), gate);
  if (error != std::errc() || end != field.data() + field.size() || !std::isfinite(gate))
    fail(name, where + ": a gate must be a finite number, got " + quote(field));
  return gate;
}

std::string number_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

// [num_layers, columns] numbers of one key; columns is set by the first row of the first key.
std::vector<double> grid_of(const Json& json,
                            const char* key,
                            const std::string& name,
                            const HeadTableModel& model,
                            size_t& columns) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_array() ||
      found->size() != static_cast<size_t>(model.num_layers))
    fail(name, std::string(key) + " must list " + std::to_string(model.num_layers) + " layers");
  std::vector<double> values;
  for (const Json& row : *found) {
    const std::string where = std::string(key) + "[" + std::to_string(&row - &found->front()) + "]";
    const size_t length = row.is_array() ? row.size() : 0;
    if (columns == 0) columns = length;
    if (length != columns || (length != static_cast<size_t>(model.num_kv_heads) &&
                              length != static_cast<size_t>(model.num_heads)))
      fail(name,
           where + " must list " + std::to_string(model.num_kv_heads) + " KV heads or " +
               std::to_string(model.num_heads) + " query heads, everywhere alike");
    for (const Json& value : row) {
      if (!value.is_number() || !std::isfinite(value.get<double>()))
        fail(name, where + " must hold finite numbers");
      values.push_back(value.get<double>());
    }
  }
  return values;
}

}  // namespace

HeadTable parse_duo_table(std::string_view tsv,
                          const std::string& name,
                          const HeadTableModel& model,
                          double sparsity) {
  HeadTable table;
  table.method = "duo";
  table.model = model;
  while (!tsv.empty() && (tsv.back() == '\n' || tsv.back() == '\r')) tsv.remove_suffix(1);
  const std::vector<std::string_view> lines = split(tsv, '\n');
  if (std::ssize(lines) != model.num_layers)
    fail(name,
         "must have one line for each of " + std::to_string(model.num_layers) + " layers, has " +
             std::to_string(lines.size()));
  std::vector<double>& gates = table.scores["gate"];
  for (size_t line = 0; line < lines.size(); ++line) {
    const std::string where = "line " + std::to_string(line + 1);
    const std::vector<std::string_view> fields = split(lines[line], '\t');
    if (std::ssize(fields) != model.num_kv_heads)
      fail(name,
           where + " must have " + std::to_string(model.num_kv_heads) +
               " gates separated by tabs, has " + std::to_string(fields.size()));
    for (const std::string_view field : fields) gates.push_back(gate_of(field, name, where));
  }
  table.ranking.resize(gates.size());
  std::iota(table.ranking.begin(), table.ranking.end(), 0);
  std::ranges::stable_sort(table.ranking, [&](int32_t a, int32_t b) {
    return gates[static_cast<size_t>(a)] > gates[static_cast<size_t>(b)];
  });
  // As many as lie at or above the interpolated quantile of distinct gates.
  const auto below =
      static_cast<size_t>(std::ceil(static_cast<double>(gates.size() - 1) * sparsity - 1e-9));
  table.heads.assign(gates.size(), HeadTable::kCompressed);
  for (size_t i = 0; i < gates.size() - below; ++i)
    table.heads[static_cast<size_t>(table.ranking[i])] = HeadTable::kFull;
  return table;
}

HeadTable load_duo_table(const std::string& path, const HeadTableModel& model, double sparsity) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path folder =
      fs::is_directory(path, error) ? fs::path(path) : fs::path(path).parent_path();
  const std::string tsv =
      fs::is_directory(path, error) ? (folder / "full_attention_heads.tsv").string() : path;
  HeadTable table = parse_duo_table(read_table_file(tsv), tsv, model, sparsity);
  const std::string config_path = (folder / "config.json").string();
  if (!file_exists(config_path)) return table;
  try {
    const JsonObject config = JsonObject::parse(read_table_file(config_path), config_path);
    const IntRange tokens{0, kMaxTokens};
    table.remarks.push_back("config.json: trained with " +
                            std::to_string(config.integer("sink_size", tokens)) + " sinks and " +
                            std::to_string(config.integer("recent_size", tokens)) +
                            " recent tokens; deployed sizes are window-sinks and window-recent");
  } catch (const LoadError& refused) {
    throw ConfigError("head table " + std::string(refused.what()));
  }
  return table;
}

kv::RetentionRule moa_rule(int32_t alpha, double beta) {
  kv::RetentionRule rule{.sink_tokens = kMoaSinks,
                         .recent_tokens = kMoaLeastSpan - kMoaSinks,
                         .growth_ppm = static_cast<int32_t>(std::lround(beta * rule.kPpm)),
                         .block_tokens = kMoaBlock};
  if (rule.growth_ppm > 0) {
    rule.growth_offset = alpha - kMoaSinks;
  } else {
    rule.recent_tokens = std::max(rule.recent_tokens, alpha - kMoaSinks);
  }
  return rule;
}

HeadTable read_moa_table(const Json& json, const std::string& name, const HeadTableModel& model) {
  for (const auto& [key, value] : json.items())
    if (key != "alphas" && key != "betas")
      fail(name, "a MoA table has the fields alphas and betas, got " + quote(key));
  size_t columns = 0;
  const std::vector<double> alphas = grid_of(json, "alphas", name, model, columns);
  const std::vector<double> betas = grid_of(json, "betas", name, model, columns);
  HeadTable table;
  table.method = "moa";
  table.model = model;
  if (columns != static_cast<size_t>(model.num_kv_heads))
    table.granularity = Granularity::kQueryHead;
  std::map<std::pair<int32_t, int32_t>, int32_t> ids;  // (alpha, beta in ppm) -> class
  for (size_t head = 0; head < alphas.size(); ++head) {
    if (!(std::abs(alphas[head]) <= kMaxAlpha))
      fail(name,
           "alpha must be within " + std::to_string(kMaxAlpha) + " tokens, got " +
               number_text(alphas[head]));
    if (!(betas[head] >= 0 && betas[head] <= 1))
      fail(name, "beta must be between 0 and 1, got " + number_text(betas[head]));
    const auto alpha = static_cast<int32_t>(std::floor(alphas[head]));
    const kv::RetentionRule rule = moa_rule(alpha, betas[head]);
    const auto next = HeadTable::kFirstNamed + static_cast<int32_t>(table.classes.size());
    const auto [entry, is_new] = ids.try_emplace({alpha, rule.growth_ppm}, next);
    if (is_new)
      table.classes.push_back({std::to_string(alpha) + "+" + number_text(betas[head]) + "N", rule});
    table.heads.push_back(entry->second);
  }
  return table;
}

}  // namespace headwater
