// The native format of head tables: strict reading, and writing.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/attention/head_table.h"
#include "engine/attention/head_table_published.h"
#include "engine/io/json_object.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "headwater.head_table/1";
constexpr std::string_view kMethods[] = {
    "window", "razor", "duo", "moa", "s2", "measured", "random"};
constexpr int32_t kMaxTokens = 16 << 20;
constexpr int32_t kMaxStride = 1 << 16;
constexpr JsonLimits kLimits{
    .max_bytes = kMaxHeadTableBytes, .max_depth = 8, .max_values = 1 << 22};

class Reader {
 public:
  Reader(const std::string& name, const HeadTableModel& model) : name_(name) {
    table_.model = model;
  }

  HeadTable read(const Json& json) {
    const std::string format = text_of(json, "format");
    if (format != kFormat)
      fail("format must be \"" + std::string(kFormat) + "\", got " + quote(format));
    only(json,
         "the table",
         {"format",
          "method",
          "model",
          "granularity",
          "classes",
          "heads",
          "ranking",
          "scores",
          "calibration"});
    read_method(json);
    check_model(member(json, "model"));
    if (json.contains("granularity")) read_granularity(text_of(json, "granularity"));
    if (json.contains("classes")) read_classes(json["classes"]);
    read_heads(member(json, "heads"));
    if (json.contains("ranking")) read_ranking(json["ranking"]);
    if (json.contains("scores")) read_scores(json["scores"]);
    if (json.contains("calibration")) read_calibration(json["calibration"]);
    return std::move(table_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw ConfigError("head table " + name_ + ": " + what);
  }

  static std::string shown(const Json& value) {
    if (value.is_string()) return quote(value.get_ref<const std::string&>());
    return value.is_structured() ? (value.is_array() ? "an array" : "an object") : value.dump();
  }

  void only(const Json& object,
            const std::string& where,
            std::initializer_list<std::string_view> known) const {
    if (!object.is_object()) fail(where + " must be an object, got " + shown(object));
    for (const auto& [key, value] : object.items()) {
      if (std::ranges::find(known, key) != known.end()) continue;
      std::string list;
      for (const std::string_view name : known)
        list += (list.empty() ? "" : ", ") + std::string(name);
      fail(where + " has an unknown field " + quote(key) + "; known: " + list);
    }
  }

  const Json& member(const Json& object, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) fail(std::string("lacks \"") + key + "\"");
    return *found;
  }

  std::string text_of(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_string()) fail(std::string(key) + " must be a text, got " + shown(value));
    return value.get<std::string>();
  }

  int32_t count(const Json& value, const std::string& what, int32_t low, int32_t high) const {
    if (!value.is_number_integer() || value.get<double>() < low || value.get<double>() > high)
      fail(what + " must be a whole number from " + std::to_string(low) + " to " +
           std::to_string(high) + ", got " + shown(value));
    return value.get<int32_t>();
  }

  void read_method(const Json& json) {
    table_.method = text_of(json, "method");
    if (std::ranges::find(kMethods, table_.method) != std::end(kMethods)) return;
    std::string known;
    for (const std::string_view method : kMethods)
      known += (known.empty() ? "" : ", ") + std::string(method);
    fail("method must be one of " + known + ", got " + quote(table_.method));
  }

  void check_model(const Json& json) const {
    only(json, "model", {"name", "num_layers", "num_kv_heads", "head_dim", "fingerprint"});
    const auto expect = [&](const char* key, int32_t actual) {
      const int32_t stated = count(member(json, key), std::string("model.") + key, 1, 1 << 24);
      if (stated != actual)
        fail("is for a model with " + std::string(key) + " " + std::to_string(stated) +
             ", this one has " + std::to_string(actual));
    };
    expect("num_layers", table_.model.num_layers);
    expect("num_kv_heads", table_.model.num_kv_heads);
    expect("head_dim", table_.model.head_dim);
    if (json.contains("name")) text_of(json, "name");
    if (!json.contains("fingerprint")) return;
    const std::string stated = text_of(json, "fingerprint");
    if (stated != table_.model.fingerprint)
      fail("is for the model " + quote(json.contains("name") ? text_of(json, "name") : "") +
           " with fingerprint " + quote(stated) + "; this one is " + quote(table_.model.name) +
           " with " + table_.model.fingerprint);
  }

  void read_granularity(const std::string& value) {
    if (value == "query_head") {
      table_.granularity = Granularity::kQueryHead;
    } else if (value != "kv_head") {
      fail("granularity must be kv_head or query_head, got " + quote(value));
    }
  }

  void read_classes(const Json& json) {
    if (!json.is_object()) fail("classes must be an object, got " + shown(json));
    for (const auto& [key, value] : json.items()) {
      const std::string where = "class " + quote(key);
      if (key == "compressed")
        fail(where + " is the policy's own rule and cannot be defined; use another name");
      only(value,
           where,
           {"sinks", "recent", "growth", "growth_offset", "block", "shard", "compensate"});
      if (key == "full") {
        if (!value.empty()) fail(where + " keeps everything and has no fields");
        continue;
      }
      table_.classes.push_back({key, read_rule(value, where + ": ")});
    }
  }

  kv::RetentionRule read_rule(const Json& json, const std::string& where) const {
    kv::RetentionRule rule;
    const auto optional = [&](const char* key, int32_t low, int32_t high, int32_t& value) {
      if (json.contains(key)) value = count(json[key], where + key, low, high);
    };
    rule.recent_tokens = count(
        json.contains("recent") ? json["recent"] : Json(nullptr), where + "recent", 1, kMaxTokens);
    optional("sinks", 0, kMaxTokens, rule.sink_tokens);
    optional("growth_offset", -kMaxTokens, kMaxTokens, rule.growth_offset);
    optional("block", 1, kMaxTokens, rule.block_tokens);
    if (json.contains("growth")) {
      const Json& growth = json["growth"];
      if (!growth.is_number() || !(growth.get<double>() >= 0 && growth.get<double>() <= 1))
        fail(where + "growth must be a number from 0 to 1, got " + shown(growth));
      rule.growth_ppm = static_cast<int32_t>(std::lround(growth.get<double>() * rule.kPpm));
    }
    if (json.contains("compensate")) {
      if (!json["compensate"].is_boolean())
        fail(where + "compensate must be true or false, got " + shown(json["compensate"]));
      rule.compensate = json["compensate"].get<bool>();
    }
    if (json.contains("shard")) {
      const Json& shard = json["shard"];
      only(shard, where + "shard", {"stride", "phase"});
      rule.shard_stride = count(member(shard, "stride"), where + "shard.stride", 1, kMaxStride);
      rule.shard_phase =
          count(member(shard, "phase"), where + "shard.phase", 0, rule.shard_stride - 1);
    }
    if (rule.compensate && (rule.shard_stride > 0 || rule.recent_tokens < 2))
      fail(where + "compensate needs recent of at least 2 and no shard");
    return rule;
  }

  // Calls visit(value, where) for every head, [num_layers, heads_per_layer].
  template <typename Visit>
  void for_each_head(const Json& json, const std::string& what, Visit&& visit) const {
    const auto num_layers = static_cast<size_t>(table_.model.num_layers);
    const auto num_heads = static_cast<size_t>(table_.heads_per_layer());
    const bool by_kv_head = table_.granularity == Granularity::kKvHead;
    if (!json.is_array() || json.size() != num_layers)
      fail(what + " must list " + std::to_string(num_layers) + " layers");
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const Json& row = json[layer];
      const std::string where = what + "[" + std::to_string(layer) + "]";
      if (!row.is_array() || row.size() != num_heads)
        fail(where + " must list " + std::to_string(num_heads) +
             (by_kv_head ? " KV heads" : " query heads"));
      for (const Json& head : row) visit(head, where);
    }
  }

  void read_heads(const Json& json) {
    std::map<std::string, int32_t> ids = {{"full", HeadTable::kFull},
                                          {"compressed", HeadTable::kCompressed}};
    for (const HeadClass& known : table_.classes)
      ids.emplace(known.name, HeadTable::kFirstNamed + static_cast<int32_t>(ids.size()) - 2);
    for_each_head(json, "heads", [&](const Json& head, const std::string& where) {
      const auto found = head.is_string() ? ids.find(head.get<std::string>()) : ids.end();
      if (found == ids.end())
        fail(where + " names an unknown class " + shown(head) +
             "; known: full, compressed and those of \"classes\"");
      table_.heads.push_back(found->second);
    });
  }

  void read_ranking(const Json& json) {
    if (!json.is_array()) fail("ranking must be a list of [layer, head]");
    std::vector<bool> seen(table_.heads.size(), false);
    for (const Json& entry : json) {
      const std::string where = "ranking[" + std::to_string(table_.ranking.size()) + "]";
      if (!entry.is_array() || entry.size() != 2) fail(where + " must be [layer, head]");
      const int32_t layer = count(entry[0], where + " layer", 0, table_.model.num_layers - 1);
      const int32_t head = count(entry[1], where + " head", 0, table_.heads_per_layer() - 1);
      const int32_t id = layer * table_.heads_per_layer() + head;
      if (seen[static_cast<size_t>(id)])
        fail(where + " repeats head " + std::to_string(head) + " of layer " +
             std::to_string(layer));
      seen[static_cast<size_t>(id)] = true;
      table_.ranking.push_back(id);
    }
  }

  void read_scores(const Json& json) {
    if (!json.is_object()) fail("scores must be an object, got " + shown(json));
    for (const auto& [key, value] : json.items()) {
      std::vector<double>& scores = table_.scores[key];
      for_each_head(
          value, "scores." + quote(key), [&](const Json& score, const std::string& where) {
            if (!score.is_number() || !std::isfinite(score.get<double>()))
              fail(where + ": a score must be a finite number, got " + shown(score));
            scores.push_back(score.get<double>());
          });
    }
  }

  void read_calibration(const Json& json) {
    if (!json.is_object()) fail("calibration must be an object, got " + shown(json));
    for (const auto& [key, value] : json.items()) {
      if (value.is_number()) {
        table_.calibration.emplace_back(key, value.get<double>());
      } else if (value.is_string()) {
        table_.calibration.emplace_back(key, value.get<std::string>());
      } else {
        fail("calibration." + quote(key) + " must be a number or a text, got " + shown(value));
      }
    }
  }

  const std::string& name_;
  HeadTable table_;
};

Json parse_object(std::string_view text, const std::string& name) {
  try {
    Json json = parse_json(text, name, kLimits);
    if (!json.is_object()) throw LoadError(name + ": must be a JSON object");
    return json;
  } catch (const LoadError& error) {
    std::string what = "head table " + std::string(error.what());
    for (const std::string_view word : {"NaN", "Infinity"})
      if (what.find("not valid JSON") != std::string::npos && text.find(word) != text.npos)
        what += " (" + std::string(word) + " is no number of JSON; scores must be finite)";
    throw ConfigError(what);
  }
}

std::string text_of(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// "[a, b, ...]" rows, one a line.
template <typename Text>
std::string rows(int32_t num_rows, int32_t row_length, Text&& text) {
  std::string out = "[";
  for (int32_t row = 0; row < num_rows; ++row) {
    out += row == 0 ? "\n    [" : ",\n    [";
    for (int32_t i = 0; i < row_length; ++i)
      out +=
          (i == 0 ? "" : ", ") +
          text(static_cast<size_t>(row) * static_cast<size_t>(row_length) + static_cast<size_t>(i));
    out += "]";
  }
  return out + "]";
}

Json rule_json(const kv::RetentionRule& rule) {
  Json json = {{"recent", rule.recent_tokens}};
  if (rule.sink_tokens > 0) json["sinks"] = rule.sink_tokens;
  if (rule.growth_ppm > 0) json["growth"] = static_cast<double>(rule.growth_ppm) / rule.kPpm;
  if (rule.growth_offset != 0) json["growth_offset"] = rule.growth_offset;
  if (rule.block_tokens > 1) json["block"] = rule.block_tokens;
  if (rule.shard_stride > 0)
    json["shard"] = {{"stride", rule.shard_stride}, {"phase", rule.shard_phase}};
  if (rule.compensate) json["compensate"] = true;
  return json;
}

}  // namespace

std::span<const std::string_view> head_table_methods() { return kMethods; }

HeadTable parse_head_table(std::string_view text,
                           const std::string& name,
                           const HeadTableModel& model) {
  const Json json = parse_object(text, name);
  if (json.contains("alphas")) return read_moa_table(json, name, model);
  return Reader(name, model).read(json);
}

HeadTableLabel head_table_label(std::string_view text, const std::string& name) {
  const Json json = parse_object(text, name);
  const auto text_at = [](const Json& object, const char* key) -> std::string {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
  };
  return {text_at(json, "method"),
          json.contains("model") ? text_at(json["model"], "fingerprint") : ""};
}

std::string write_head_table(const HeadTable& table) {
  const int32_t per_layer = table.heads_per_layer();
  const auto grid = [&](auto&& text) { return rows(table.model.num_layers, per_layer, text); };
  std::string out = "{\n  \"format\": " + text_of(kFormat);
  out += ",\n  \"method\": " + text_of(table.method);
  nlohmann::ordered_json model = {{"name", table.model.name},
                                  {"num_layers", table.model.num_layers},
                                  {"num_kv_heads", table.model.num_kv_heads},
                                  {"head_dim", table.model.head_dim}};
  if (!table.model.fingerprint.empty()) model["fingerprint"] = table.model.fingerprint;
  out += ",\n  \"model\": " +
         model.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  out += table.granularity == Granularity::kKvHead ? ",\n  \"granularity\": \"kv_head\""
                                                   : ",\n  \"granularity\": \"query_head\"";
  if (!table.classes.empty()) {
    out += ",\n  \"classes\": {";
    for (size_t i = 0; i < table.classes.size(); ++i)
      out += (i == 0 ? "\n    " : ",\n    ") + text_of(table.classes[i].name) + ": " +
             text_of(rule_json(table.classes[i].rule));
    out += "}";
  }
  out += ",\n  \"heads\": " + grid([&](size_t i) -> std::string {
           const int32_t id = table.heads[i];
           if (id == HeadTable::kFull) return "\"full\"";
           if (id == HeadTable::kCompressed) return "\"compressed\"";
           return text_of(table.classes[static_cast<size_t>(id - HeadTable::kFirstNamed)].name);
         });
  if (!table.ranking.empty()) {
    out += ",\n  \"ranking\": [";
    for (size_t i = 0; i < table.ranking.size(); ++i)
      out += (i == 0       ? "\n    ["
              : i % 8 == 0 ? ",\n    ["
                           : ", [") +
             std::to_string(table.ranking[i] / per_layer) + ", " +
             std::to_string(table.ranking[i] % per_layer) + "]";
    out += "]";
  }
  if (!table.scores.empty()) {
    out += ",\n  \"scores\": {";
    bool first = true;
    for (const auto& [name, values] : table.scores) {
      out += (first ? "\n  " : ",\n  ") + text_of(name) + ": " +
             grid([&values = values](size_t i) { return text_of(values[i]); });
      first = false;
    }
    out += "}";
  }
  if (!table.calibration.empty()) {
    nlohmann::ordered_json notes = nlohmann::ordered_json::object();
    for (const auto& [key, note] : table.calibration)
      std::visit([&, &key = key](const auto& value) { notes[key] = value; }, note);
    out += ",\n  \"calibration\": " +
           notes.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  }
  return out + "\n}\n";
}

}  // namespace headwater
