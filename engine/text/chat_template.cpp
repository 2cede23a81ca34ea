#include "engine/text/chat_template.h"

#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/text/jinja/evaluator.h"
#include "engine/text/jinja/lexer.h"
#include "engine/text/jinja/parser.h"
#include "engine/text/utf8.h"

namespace headwater {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;
// About a second of the slowest steps, or 512 MiB of text.
constexpr int64_t kMaxUnits = 16 << 20;

}  // namespace

struct ChatTemplate::Impl {
  std::string source;
  jinja::ast::Body body;
};

ChatTemplate::ChatTemplate(std::string source, const std::string& name)
    : impl_(std::make_unique<Impl>()) {
  if (source.size() > kMaxSourceBytes) {
    throw LoadError(name + ": the chat template has " + std::to_string(source.size()) +
                    " bytes, expected at most " + std::to_string(kMaxSourceBytes));
  }
  impl_->source = utf8::sanitize(source);
  try {
    impl_->body = jinja::parse(impl_->source);
  } catch (const jinja::SyntaxError& error) {
    throw LoadError(name + ": chat template line " + std::to_string(error.line) + ": " +
                    error.what());
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& variables,
                                         std::optional<int64_t> now) const {
  try {
    jinja::Runtime runtime(kMaxUnits, now.value_or(std::time(nullptr)));
    const jinja::Value root = runtime.from_json(variables);
    if (!root.is_dict()) return invalid_argument("chat template: the variables are no object");
    return jinja::Evaluator(runtime, root).render(impl_->body);
  } catch (const jinja::RenderError& error) {
    return invalid_argument("chat template: " + std::string(error.what()), "messages");
  }
}

const std::string& ChatTemplate::source() const { return impl_->source; }

}  // namespace headwater
