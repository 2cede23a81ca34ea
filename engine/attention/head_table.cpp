#include "engine/attention/head_table.h"

#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "headwater.head_table/1";
constexpr size_t kMaxFileBytes = size_t{64} << 20;

class Reader {
 public:
  Reader(const std::string& name, const ModelSpec& model) : name_(name), model_(model) {}

  HeadTable read(std::string_view text) const {
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_discarded()) fail("is not valid JSON");
    if (!json.is_object()) fail("must be a JSON object");
    const std::string format = text_of(json, "format");
    if (format != kFormat)
      fail("format must be \"" + std::string(kFormat) + "\", got \"" + format + "\"");
    check_model(member(json, "model"));
    HeadTable table{text_of(json, "method"), {}};
    const std::map<std::string, kv::RetentionRule> classes = read_classes(member(json, "classes"));
    const Json& heads = member(json, "heads");
    if (!heads.is_array() || heads.size() != model_.layers.size())
      fail("heads must list " + std::to_string(model_.layers.size()) + " layers");
    for (size_t layer = 0; layer < heads.size(); ++layer) {
      const auto count = static_cast<size_t>(model_.layers[layer].heads.num_kv_heads);
      const std::string where = "heads[" + std::to_string(layer) + "]";
      if (!heads[layer].is_array() || heads[layer].size() != count)
        fail(where + " must list " + std::to_string(count) + " KV heads");
      for (const Json& head : heads[layer]) {
        const auto found = head.is_string() ? classes.find(head.get<std::string>()) : classes.end();
        if (found == classes.end())
          fail(where + " names a class that \"classes\" lacks: " + head.dump());
        table.rules.push_back(found->second);
      }
    }
    return table;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw ConfigError("head table " + name_ + ": " + what);
  }

  const Json& member(const Json& object, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) fail(std::string("lacks \"") + key + "\"");
    return *found;
  }

  std::string text_of(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_string()) fail(std::string(key) + " must be a string");
    return value.get<std::string>();
  }

  int32_t count_of(const Json& object, const char* key, int32_t low) const {
    const Json& value = member(object, key);
    if (!value.is_number_integer() || value.get<double>() < low || value.get<double>() > 1 << 30)
      fail(std::string(key) + " must be a whole number of at least " + std::to_string(low) +
           ", got " + value.dump());
    return value.get<int32_t>();
  }

  void check_model(const Json& json) const {
    if (!json.is_object()) fail("model must be an object");
    const HeadShape& heads = model_.layers[0].heads;
    const auto expect = [&](const char* key, int32_t actual) {
      const int32_t stated = count_of(json, key, 1);
      if (stated != actual)
        fail("is for a model with " + std::string(key) + " " + std::to_string(stated) +
             ", this one has " + std::to_string(actual));
    };
    expect("num_layers", static_cast<int32_t>(model_.layers.size()));
    expect("num_kv_heads", heads.num_kv_heads);
    expect("head_dim", heads.head_dim);
  }

  std::map<std::string, kv::RetentionRule> read_classes(const Json& json) const {
    if (!json.is_object()) fail("classes must be an object");
    std::map<std::string, kv::RetentionRule> classes;
    for (const auto& [key, value] : json.items()) {
      if (!value.is_object()) fail("class " + key + " must be an object");
      for (const auto& [field, unused] : value.items())
        if (field != "sinks" && field != "recent")
          fail("class " + key + " has an unknown field \"" + field + "\"; known: sinks, recent");
      kv::RetentionRule rule;  // {}: keeps everything
      if (!value.empty()) rule = {count_of(value, "sinks", 0), count_of(value, "recent", 1)};
      classes.emplace(key, rule);
    }
    return classes;
  }

  const std::string& name_;
  const ModelSpec& model_;
};

}  // namespace

HeadTable parse_head_table(std::string_view json, const std::string& name, const ModelSpec& model) {
  return Reader(name, model).read(json);
}

HeadTable load_head_table(const std::string& path, const ModelSpec& model) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError("head table " + path + ": cannot be read (option head-table)");
  std::string text;
  text.resize(kMaxFileBytes + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) throw ConfigError("head table " + path + ": over 64 MiB");
  return parse_head_table(text, path, model);
}

}  // namespace headwater
