// One rendering of a syntax tree. Used by one thread, once.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/value.h"

namespace headwater::jinja {

class Evaluator {
 public:
  // Names of one block; looked up inside out. Keys live in the tree or in the variables.
  struct Scope {
    Scope* outer;
    std::vector<std::pair<std::string_view, Value>> names;
  };

  // runtime and variables (a dict) are not owned.
  Evaluator(Runtime& runtime, const Value& variables);
  // Throws RenderError, with the line.
  std::string render(const ast::Body& body);

  // A macro's or caller's body with the arguments bound.
  std::string call_macro(const ast::Macro& macro, Scope& defined_in, const Arguments& arguments);
  // One more level of a recursive loop, as a text.
  std::string call_loop(const ast::For& loop, Scope& outer, const Value& iterable, int depth);

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };

  Flow run(const ast::Body& body);
  Flow exec(const ast::Text& node);
  Flow exec(const ast::Output& node);
  Flow exec(const ast::If& node);
  Flow exec(const ast::For& node);
  Flow exec(const ast::Set& node);
  Flow exec(const ast::SetBlock& node);
  Flow exec(const ast::FilterBlock& node);
  Flow exec(const ast::With& node);
  Flow exec(const ast::Macro& node);
  Flow exec(const ast::CallBlock& node);
  Flow exec(const ast::Do& node);
  Flow exec(const ast::Scoped& node);
  Flow run_loop(const ast::For& node, const Value& iterable, int depth);
  Flow exec(const ast::Break&) { return Flow::kBreak; }
  Flow exec(const ast::Continue&) { return Flow::kContinue; }

  Value eval(const ast::Expr& expr);
  Value eval(const ast::Literal& node) { return node.value; }
  Value eval(const ast::Name& node);
  Value eval(const ast::ListLiteral& node);
  Value eval(const ast::DictLiteral& node);
  Value eval(const ast::Not& node);
  Value eval(const ast::Negate& node);
  Value eval(const ast::Logic& node);
  Value eval(const ast::Binary& node);
  Value eval(const ast::Concat& node);
  Value eval(const ast::Compare& node);
  Value eval(const ast::Conditional& node);
  Value eval(const ast::Attribute& node);
  Value eval(const ast::Subscript& node);
  Value eval(const ast::Slice& node);
  Value eval(const ast::Call& node);
  Value eval(const ast::Filter& node);
  Value eval(const ast::Test& node);
  Value eval_or_none(const ast::ExprPtr& expr);
  Value apply_filters(const ast::Expr& chain, const Value& text);
  Arguments eval(const ast::CallArguments& arguments);
  Value call(const Value& callee, const Arguments& arguments);

  void assign(const ast::Target& target, const Value& value);
  void set_name(Scope& scope, std::string_view name, Value value);
  const Value* find_name(std::string_view name) const;
  void write(std::string_view text);
  // What a body writes, as a text instead.
  std::string capture(const ast::Body& body);

  Runtime& runtime_;
  std::deque<Scope> scopes_;  // all of the render: macros keep theirs
  Scope* scope_;
  std::string* out_ = nullptr;
  const Value* filter_input_ = nullptr;
  int depth_ = 0;
};

}  // namespace headwater::jinja
