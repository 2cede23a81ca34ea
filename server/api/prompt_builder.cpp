#include "server/api/prompt_builder.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/text/unicode.h"

namespace headwater::api {
namespace {

using Json = nlohmann::ordered_json;

// Roles are a closed list because templates build control tokens from them.
constexpr std::string_view kRoles[] = {
    "system", "developer", "user", "assistant", "tool", "function"};

// The guard marks "no control token begins here". It is a Unicode noncharacter that occurs nowhere
// in the request, so it can be taken out again exactly.
constexpr std::string_view kGuards[] = {
    "\xEF\xB7\x90", "\xEF\xB7\x91", "\xEF\xB7\x92", "\xEF\xB7\x93"};

bool any_string(const Json& value, std::string_view needle) {
  if (value.is_string()) {
    return value.get_ref<const std::string&>().find(needle) != std::string::npos;
  }
  if (!value.is_structured()) return false;
  return std::any_of(
      value.begin(), value.end(), [&](const Json& child) { return any_string(child, needle); });
}

// Checks the role, and turns a list of text parts into the string that templates expect.
Status normalise_message(Json& message) {
  if (!message.is_object()) return invalid_argument("each message must be an object", "messages");
  const std::string role =
      message.contains("role") && message["role"].is_string() ? message["role"] : "";
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
    return invalid_argument(
        "each message needs a role: system, developer, user, assistant, tool or function",
        "messages");
  }
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) {
    message["content"] = "";
    return Status::Ok();
  }
  if (content->is_string()) return Status::Ok();
  if (!content->is_array()) {
    return invalid_argument("content must be a string or a list of text parts", "messages");
  }
  std::string joined;
  for (const Json& part : *content) {
    if (!part.is_object() || !part.contains("type") || part["type"] != "text" ||
        !part.contains("text") || !part["text"].is_string()) {
      return invalid_argument("content parts must be {\"type\": \"text\", \"text\": \"...\"}",
                              "messages");
    }
    if (!joined.empty()) joined += '\n';
    joined += part["text"].get_ref<const std::string&>();
  }
  *content = std::move(joined);
  return Status::Ok();
}

}  // namespace

PromptBuilder::PromptBuilder(const Tokenizer& tokenizer, const ChatTemplate* chat_template)
    : tokenizer_(tokenizer), chat_template_(chat_template) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view text = tokenizer.token_text(id);
    if (tokenizer.is_control(id) && !text.empty()) controls_.push_back({std::string(text), id});
  }
  std::sort(controls_.begin(), controls_.end(), [](const auto& a, const auto& b) {
    return a.text != b.text ? a.text < b.text : a.id < b.id;
  });
}

std::vector<int32_t> PromptBuilder::plain(std::string_view text) const {
  return tokenizer_.encode(text, /*add_special=*/true, /*parse_special=*/false);
}

Result<std::vector<int32_t>> PromptBuilder::chat(Json variables) const {
  if (chat_template_ == nullptr) {
    return invalid_argument(
        "this model has no chat template: use /v1/completions, or start the server with "
        "--chat-template",
        "messages");
  }
  Json& messages = variables["messages"];
  if (!messages.is_array() || messages.empty()) {
    return invalid_argument("messages must be a list with at least one message", "messages");
  }
  for (Json& message : messages) {
    if (Status status = normalise_message(message); !status.ok()) return status;
  }
  const auto guard = std::find_if(std::begin(kGuards), std::end(kGuards), [&](std::string_view g) {
    return !any_string(variables, g) && chat_template_->source().find(g) == std::string::npos;
  });
  if (guard == std::end(kGuards)) {
    return invalid_argument("the messages use every Unicode noncharacter U+FDD0..U+FDD3",
                            "messages");
  }
  if (Status status = guard_strings(variables, *guard); !status.ok()) return status;
  const auto special_text = [&](int32_t id) {
    return std::string(id < 0 ? std::string_view() : tokenizer_.token_text(id));
  };
  variables["bos_token"] = special_text(tokenizer_.bos());
  variables["eos_token"] = special_text(tokenizer_.eos());
  if (!variables.contains("add_generation_prompt")) variables["add_generation_prompt"] = true;

  Result<std::string> rendered = chat_template_->render(variables);
  if (!rendered.ok()) return rendered.status();
  if (rendered.value().find(*guard) == std::string::npos) {
    return tokenizer_.encode(rendered.value(), /*add_special=*/false, /*parse_special=*/true);
  }
  return encode_guarded(rendered.value(), *guard);
}

PromptBuilder::ControlMatch PromptBuilder::match_control(std::string_view text) const {
  ControlMatch match;
  auto low = controls_.begin();
  auto high = controls_.end();
  // [low, high) are the control tokens that begin with text[0, depth).
  for (size_t depth = 0; low != high; ++depth) {
    if (depth > 0 && low->text.size() == depth) match = {depth, low->id, false};
    const auto longer = std::partition_point(
        low, high, [&](const ControlToken& c) { return c.text.size() <= depth; });
    if (depth == text.size()) {
      match.cut_off = longer != high;
      break;
    }
    const auto byte_at = [&](const ControlToken& c) {
      return static_cast<unsigned char>(c.text[depth]);
    };
    const auto byte = static_cast<unsigned char>(text[depth]);
    low = std::partition_point(
        longer, high, [&](const ControlToken& c) { return byte_at(c) < byte; });
    high =
        std::partition_point(low, high, [&](const ControlToken& c) { return byte_at(c) == byte; });
  }
  return match;
}

std::string PromptBuilder::guarded(const std::string& text, std::string_view guard) const {
  std::string out;
  for (size_t pos = 0; pos < text.size(); ++pos) {
    const ControlMatch match = match_control(std::string_view(text).substr(pos));
    if (match.length > 0 || match.cut_off) out += guard;
    out += text[pos];
  }
  return out;
}

Status PromptBuilder::guard_strings(Json& value, std::string_view guard) const {
  if (value.is_string()) {
    auto& text = value.get_ref<std::string&>();
    text = guarded(text, guard);
    return Status::Ok();
  }
  if (!value.is_structured()) return Status::Ok();
  for (auto it = value.begin(); it != value.end(); ++it) {
    if (value.is_object()) {
      if (guarded(it.key(), guard) != it.key()) {
        return invalid_argument("the field name '" + it.key() + "' holds a control token", "");
      }
      if (it.key() == "role") continue;
    }
    if (Status status = guard_strings(*it, guard); !status.ok()) return status;
  }
  return Status::Ok();
}

std::vector<int32_t> PromptBuilder::encode_guarded(std::string_view text,
                                                   std::string_view guard) const {
  std::vector<int32_t> ids;
  std::string literal;
  const auto flush = [&] {
    if (literal.empty()) return;
    const auto encoded = tokenizer_.encode(literal, /*add_special=*/false, /*parse_special=*/false);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    literal.clear();
  };
  for (size_t pos = 0; pos < text.size();) {
    if (text.substr(pos, guard.size()) == guard) {
      pos += guard.size();
      if (pos < text.size()) literal += text[pos++];
      continue;
    }
    if (const ControlMatch match = match_control(text.substr(pos)); match.length > 0) {
      const SpecialRule rule = tokenizer_.special_rule(match.id);
      if (rule.strips_left) literal.resize(literal.size() - unicode::trailing_space(literal));
      flush();
      ids.push_back(match.id);
      pos += match.length;
      if (rule.strips_right) pos += unicode::leading_space(text.substr(pos));
    } else {
      literal += text[pos++];
    }
  }
  flush();
  return ids;
}

}  // namespace headwater::api
