#include "server/cli/inspect_heads.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace headwater::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kPageTokens = 16;

// '#' keeps everything; '.' is the rule that most heads share, a, b, c ... the further ones.
char letter_of(size_t rank) {
  if (rank == 0) return '.';
  return rank <= 26 ? static_cast<char>('a' + rank - 1) : '+';
}

Json rule_json(const kv::RetentionRule& rule) {
  Json json;
  if (rule.layer_window > 0) json["layer_window"] = rule.layer_window;
  if (rule.keeps_all_seen()) {
    json["keeps"] = "everything";  // that the layer sees
    return json;
  }
  json["sinks"] = rule.sink_tokens;
  json["recent"] = rule.recent_tokens;
  if (rule.growth_ppm > 0) {
    json["growth"] = static_cast<double>(rule.growth_ppm) / rule.kPpm;
    json["growth_offset"] = rule.growth_offset;
  }
  json["block"] = rule.block_tokens;
  if (rule.shard_stride > 0) {
    json["shard_stride"] = rule.shard_stride;
    json["shard_phase"] = rule.shard_phase;
  }
  if (rule.compensate) json["compensate"] = true;
  return json;
}

}  // namespace

Json describe_heads(const AttentionPlan& plan, const LoadedModel& model) {
  const HeadShape& heads = model.spec.layers[0].heads;
  const auto num_layers = static_cast<int32_t>(model.spec.layers.size());
  const kv::KvGeometry geometry(
      num_layers, heads.num_kv_heads, plan.rules, {DType::kF16, heads.head_dim, kPageTokens, 0});

  std::vector<size_t> by_size;  // groups that drop tokens, largest first
  for (size_t g = 0; g < geometry.groups().size(); ++g)
    if (!geometry.groups()[g].rule.keeps_all()) by_size.push_back(g);
  std::ranges::stable_sort(by_size, [&](size_t a, size_t b) {
    return geometry.groups()[a].num_heads > geometry.groups()[b].num_heads;
  });
  std::string letters(geometry.groups().size(), '#');
  for (size_t rank = 0; rank < by_size.size(); ++rank) letters[by_size[rank]] = letter_of(rank);

  Json report = {{"policy", plan.policy},
                 {"table", plan.table},
                 {"method", plan.method},
                 {"prefill", plan.faithful ? "faithful" : "streaming"},
                 {"heads", geometry.num_heads()},
                 {"full_heads", plan.num_full()}};
  report["remarks"] = plan.remarks;
  for (size_t g = 0; g < geometry.groups().size(); ++g)
    report["classes"].push_back({{"letter", std::string(1, letters[g])},
                                 {"heads", geometry.groups()[g].num_heads},
                                 {"rule", rule_json(geometry.groups()[g].rule)}});
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    std::string row;
    for (int32_t head = 0; head < heads.num_kv_heads; ++head)
      row += letters[static_cast<size_t>(
          geometry.heads()[static_cast<size_t>(layer * heads.num_kv_heads + head)].group)];
    report["picture"].push_back(row);
  }
  for (int64_t tokens = 2 << 10; tokens <= 128 << 10; tokens *= 2) {
    const int64_t held = geometry.bytes_for(tokens, false);
    const int64_t dense = geometry.dense_cache_bytes(tokens);
    report["sequences"].push_back(
        {{"tokens", tokens},
         {"held_bytes", held},
         {"dense_bytes", dense},
         {"held_bytes_per_token", held / tokens},
         {"dense_bytes_per_token", dense / tokens},
         {"share", static_cast<double>(held) / static_cast<double>(dense)}});
  }
  return report;
}

void print_heads(const Json& report, std::ostream& out) {
  out << "\nattention\n  policy " << report["policy"].get<std::string>() << ", prefill "
      << report["prefill"].get<std::string>() << "; " << report["full_heads"] << " of "
      << report["heads"] << " heads keep every token\n";
  const auto table = report["table"].get<std::string>();
  if (!table.empty())
    out << "  head table " << table << ", made by " << report["method"].get<std::string>() << "\n";
  for (const Json& remark : report["remarks"]) out << "  " << remark.get<std::string>() << "\n";
  for (const Json& one : report["classes"])
    out << "  " << one["letter"].get<std::string>() << "  " << one["heads"] << " heads  "
        << one["rule"].dump() << "\n";
  out << "\n  KV heads, one line per layer\n";
  int layer = 0;
  for (const Json& row : report["picture"]) {
    char number[16];
    std::snprintf(number, sizeof(number), "  %4d  ", layer++);
    out << number << row.get<std::string>() << "\n";
  }
  out << "\n   tokens     held MB    dense MB   share   held B/token  dense B/token   (KV in "
         "F16)\n";
  for (const Json& row : report["sequences"]) {
    char line[128];
    std::snprintf(line,
                  sizeof(line),
                  "  %7lld  %10.1f  %10.1f  %6.3f  %13lld  %13lld\n",
                  static_cast<long long>(row["tokens"].get<int64_t>()),
                  row["held_bytes"].get<double>() * 1e-6,
                  row["dense_bytes"].get<double>() * 1e-6,
                  row["share"].get<double>(),
                  static_cast<long long>(row["held_bytes_per_token"].get<int64_t>()),
                  static_cast<long long>(row["dense_bytes_per_token"].get<int64_t>()));
    out << line;
  }
}

}  // namespace headwater::cli
