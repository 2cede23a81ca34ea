// Above 400 lines: one short function per node of the tree, read together or not at all.
#include "engine/text/jinja/evaluator.h"

#include <algorithm>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"

namespace headwater::jinja {
namespace {

constexpr int kMaxDepth = 900;

template <typename T>
class Restore {
 public:
  Restore(T& variable, T value) : variable_(variable), saved_(std::exchange(variable, value)) {}
  ~Restore() { variable_ = saved_; }
  Restore(const Restore&) = delete;

 private:
  T& variable_;
  T saved_;
};

class MacroObject final : public Object {
 public:
  MacroObject(Evaluator& evaluator, const ast::Macro& macro, Evaluator::Scope& scope)
      : evaluator_(evaluator), macro_(macro), scope_(scope) {}
  std::string_view type_name() const override { return "Macro"; }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const Arguments& arguments) override {
    return runtime.text(evaluator_.call_macro(macro_, scope_, arguments));
  }
  std::string repr(Runtime&, int) override { return "<Macro '" + macro_.name + "'>"; }
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override {
    if (name == "name") return Value::of(macro_.name);
    if (name == "catch_varargs") return Value::of(macro_.takes_varargs);
    if (name == "catch_kwargs") return Value::of(macro_.takes_kwargs);
    if (name == "caller") return Value::of(macro_.takes_caller);
    if (name != "arguments") return std::nullopt;
    std::vector<Value> names;
    for (const ast::Parameter& parameter : macro_.parameters) {
      names.push_back(Value::of(parameter.name));
    }
    return runtime.tuple(std::move(names));
  }

 private:
  Evaluator& evaluator_;
  const ast::Macro& macro_;
  Evaluator::Scope& scope_;
};

class Loop final : public Object {
 public:
  Loop(Evaluator& evaluator,
       const ast::For& node,
       Evaluator::Scope& outer,
       std::vector<Value> items,
       int depth)
      : evaluator_(evaluator),
        node_(node),
        outer_(outer),
        items_(std::move(items)),
        depth_(depth) {}
  std::string_view type_name() const override { return "LoopContext"; }
  std::string repr(Runtime&, int) override {
    return "<LoopContext " + std::to_string(index_ + 1) + "/" + std::to_string(items_.size()) + ">";
  }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const Arguments& arguments) override {
    if (!node_.recursive) {
      throw RenderError("The loop must have the 'recursive' marker to be called recursively.");
    }
    const auto [iterable] = bind(arguments, {"iterable"});
    return runtime.text(evaluator_.call_loop(node_, outer_, iterable, depth_ + 1));
  }
  const std::vector<Value>& items() const { return items_; }
  void move_to(size_t index) { index_ = index; }

  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override {
    const auto index = static_cast<int64_t>(index_), size = static_cast<int64_t>(items_.size());
    if (name == "index") return Value::of(index + 1);
    if (name == "index0") return Value::of(index);
    if (name == "revindex") return Value::of(size - index);
    if (name == "revindex0") return Value::of(size - index - 1);
    if (name == "first") return Value::of(index == 0);
    if (name == "last") return Value::of(index + 1 == size);
    if (name == "length") return Value::of(size);
    if (name == "depth") return Value::of(int64_t{depth_ + 1});
    if (name == "depth0") return Value::of(int64_t{depth_});
    if (name == "previtem") {
      return index > 0 ? items_[index_ - 1] : Value::undefined("there is no previous item");
    }
    if (name == "nextitem") {
      return index + 1 < size ? items_[index_ + 1] : Value::undefined("there is no next item");
    }
    if (name == "cycle") return Value::of(&runtime.new_object<Method>(*this, &Loop::cycle));
    if (name == "changed") return Value::of(&runtime.new_object<Method>(*this, &Loop::changed));
    return std::nullopt;
  }

 private:
  class Method final : public Object {
   public:
    Method(Loop& loop, Value (Loop::*function)(Runtime&, const Arguments&))
        : loop_(loop), function_(function) {}
    std::string_view type_name() const override { return "method"; }
    bool is_callable() const override { return true; }
    Value call(Runtime& runtime, const Arguments& arguments) override {
      return (loop_.*function_)(runtime, arguments);
    }

   private:
    Loop& loop_;
    Value (Loop::*function_)(Runtime&, const Arguments&);
  };

  Value cycle(Runtime&, const Arguments& arguments) {
    if (arguments.positional.empty()) throw RenderError("no items for cycling given");
    return arguments.positional[index_ % arguments.positional.size()];
  }
  Value changed(Runtime& runtime, const Arguments& arguments) {
    const bool same =
        last_ &&
        std::ranges::equal(*last_, arguments.positional, [&](const Value& a, const Value& b) {
          return equal(runtime, a, b);
        });
    last_ = arguments.positional;
    return Value::of(!same);
  }

  Evaluator& evaluator_;
  const ast::For& node_;
  Evaluator::Scope& outer_;
  std::vector<Value> items_;
  int depth_;
  size_t index_ = 0;
  std::optional<std::vector<Value>> last_;
};

}  // namespace

Evaluator::Evaluator(Runtime& runtime, const Value& variables) : runtime_(runtime) {
  scope_ = &scopes_.emplace_back(Scope{nullptr, {}});
  for (const auto& [key, value] : variables.dict().items()) {
    scope_->names.emplace_back(key.string(), value);
  }
}

std::string Evaluator::render(const ast::Body& body) {
  // A scope of its own: macros see the template's names, and those shadow the variables.
  scope_ = &scopes_.emplace_back(Scope{scope_, {}});
  return capture(body);
}

const Value* Evaluator::find_name(std::string_view name) const {
  for (const Scope* scope = scope_; scope; scope = scope->outer) {
    for (const auto& [key, value] : scope->names) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Evaluator::set_name(Scope& scope, std::string_view name, Value value) {
  for (auto& [key, old] : scope.names) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  scope.names.emplace_back(name, std::move(value));
}

void Evaluator::assign(const ast::Target& target, const Value& value) {
  if (!target.attribute.empty()) {
    const Value* object = find_name(target.name);
    if (!object || !object->is_object() ||
        !object->object().set_attribute(target.attribute, value)) {
      throw RenderError("cannot assign attribute on non-namespace object");
    }
    return;
  }
  if (!target.unpacks) {
    set_name(*scope_, target.name, value);
    return;
  }
  if (value.is_undefined()) throw RenderError(value.undefined_message());
  const std::vector<Value> items = iterate(runtime_, value);
  if (items.size() != target.parts.size()) {
    throw RenderError("cannot unpack " + std::to_string(items.size()) + " values into " +
                      std::to_string(target.parts.size()) + " names");
  }
  for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
}

void Evaluator::write(std::string_view text) {
  runtime_.charge(text.size() / 32);
  *out_ += text;
}

std::string Evaluator::capture(const ast::Body& body) {
  std::string text;
  const Restore out(out_, &text);
  run(body);
  return text;
}

std::string Evaluator::call_macro(const ast::Macro& macro,
                                  Scope& defined_in,
                                  const Arguments& arguments) {
  runtime_.charge(4);
  const Restore scope(scope_, &scopes_.emplace_back(Scope{&defined_in, {}}));
  const auto& parameters = macro.parameters;
  std::vector<std::pair<std::string, Value>> named = arguments.named;
  const auto take = [&](std::string_view name) -> std::optional<Value> {
    const auto it = std::ranges::find_if(named, [&](const auto& n) { return n.first == name; });
    if (it == named.end()) return std::nullopt;
    Value value = std::move(it->second);
    named.erase(it);
    return value;
  };
  bool has_caller = false;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ast::Parameter& parameter = parameters[i];
    std::optional<Value> value;
    if (i < arguments.positional.size()) {
      value = arguments.positional[i];
    } else {
      value = take(parameter.name);
    }
    if (!value && parameter.fallback) value = eval(*parameter.fallback);
    if (!value) value = Value::undefined("parameter '" + parameter.name + "' was not provided");
    has_caller |= parameter.name == "caller";
    set_name(*scope_, parameter.name, std::move(*value));
  }
  if (macro.takes_caller && !has_caller) {
    set_name(*scope_, "caller", take("caller").value_or(Value::undefined("No caller defined")));
  }
  if (macro.takes_kwargs) {
    Dict& rest = runtime_.new_dict();
    for (auto& [name, value] : named) rest.set(runtime_.text(name), std::move(value));
    set_name(*scope_, "kwargs", Value::of(&rest));
  } else if (!named.empty()) {
    throw RenderError("macro '" + macro.name + "' takes no keyword argument '" + named[0].first +
                      "'");
  }
  const size_t num_taken = std::min(parameters.size(), arguments.positional.size());
  if (macro.takes_varargs) {
    set_name(*scope_,
             "varargs",
             runtime_.tuple({arguments.positional.begin() + static_cast<ptrdiff_t>(num_taken),
                             arguments.positional.end()}));
  } else if (arguments.positional.size() > parameters.size()) {
    throw RenderError("macro '" + macro.name + "' takes not more than " +
                      std::to_string(parameters.size()) + " argument(s)");
  }
  return capture(macro.body);
}

Evaluator::Flow Evaluator::run(const ast::Body& body) {
  for (const ast::Stmt& stmt : body) {
    runtime_.charge(1);
    const Flow flow = std::visit([this](const auto& node) { return exec(node); }, stmt.node);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::Text& node) {
  write(node.text);
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::Output& node) {
  const Value value = eval(*node.value);
  if (value.is_string()) {
    write(value.string());
  } else {
    write(value.str(runtime_));
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::If& node) {
  for (const auto& [condition, body] : node.branches) {
    if (eval(*condition).truthy()) return run(body);
  }
  return run(node.otherwise);
}

Evaluator::Flow Evaluator::exec(const ast::For& node) {
  return run_loop(node, eval(*node.iterable), 0);
}

std::string Evaluator::call_loop(const ast::For& loop,
                                 Scope& outer,
                                 const Value& iterable,
                                 int depth) {
  const Restore level(depth_, depth_ + 1);
  if (depth_ > kMaxDepth) throw RenderError("the template calls itself too deeply");
  const Restore scope(scope_, &outer);
  std::string text;
  const Restore out(out_, &text);
  run_loop(loop, iterable, depth);
  return text;
}

Evaluator::Flow Evaluator::run_loop(const ast::For& node, const Value& iterable, int depth) {
  std::vector<Value> items = iterate(runtime_, iterable);
  Scope* const outer = scope_;
  const Restore restore(scope_, outer);
  if (node.condition) {
    std::vector<Value> kept;
    for (Value& item : items) {
      scope_ = &scopes_.emplace_back(Scope{outer, {}});
      assign(node.target, item);
      if (eval(*node.condition).truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
    scope_ = outer;
  }
  if (items.empty()) {
    scope_ = &scopes_.emplace_back(Scope{outer, {}});
    return run(node.otherwise);
  }
  Loop& loop = runtime_.new_object<Loop>(*this, node, *outer, std::move(items), depth);
  for (size_t i = 0; i < loop.items().size(); ++i) {
    runtime_.charge(2);
    loop.move_to(i);
    scope_ = &scopes_.emplace_back(Scope{outer, {}});
    set_name(*scope_, "loop", Value::of(&loop));
    assign(node.target, loop.items()[i]);
    if (run(node.body) == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::Set& node) {
  assign(node.target, eval(*node.value));
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::SetBlock& node) {
  Scope* const outer = scope_;
  const Restore restore(scope_, &scopes_.emplace_back(Scope{outer, {}}));
  Value value = runtime_.text(capture(node.body));
  if (node.filter) value = apply_filters(*node.filter, value);
  scope_ = outer;
  assign(node.target, value);
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::FilterBlock& node) {
  const Restore restore(scope_, &scopes_.emplace_back(Scope{scope_, {}}));
  write(apply_filters(*node.filter, runtime_.text(capture(node.body))).str(runtime_));
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::With& node) {
  std::vector<Value> values;
  for (const auto& [target, value] : node.values) values.push_back(eval(*value));
  const Restore restore(scope_, &scopes_.emplace_back(Scope{scope_, {}}));
  for (size_t i = 0; i < values.size(); ++i) assign(node.values[i].first, values[i]);
  return run(node.body);
}

Evaluator::Flow Evaluator::exec(const ast::Macro& node) {
  Object& macro = runtime_.new_object<MacroObject>(*this, node, *scope_);
  set_name(*scope_, node.name, Value::of(&macro));
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::CallBlock& node) {
  const auto& target = std::get<ast::Call>(node.call->node);
  Object& caller = runtime_.new_object<MacroObject>(*this, node.caller, *scope_);
  Arguments arguments = eval(target.arguments);
  arguments.named.emplace_back("caller", Value::of(&caller));
  write(call(eval(*target.callee), arguments).str(runtime_));
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::Do& node) {
  eval(*node.value);
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::exec(const ast::Scoped& node) {
  const Restore restore(scope_, &scopes_.emplace_back(Scope{scope_, {}}));
  return run(node.body);
}

Value Evaluator::eval(const ast::Expr& expr) {
  runtime_.charge(1);
  const Restore depth(depth_, depth_ + 1);
  if (depth_ > kMaxDepth) throw RenderError("the template calls itself too deeply");
  try {
    return std::visit([this](const auto& node) { return eval(node); }, expr.node);
  } catch (RenderError& error) {
    if (std::string_view(error.what()).starts_with("line ")) throw;
    throw RenderError("line " + std::to_string(expr.line) + ": " + error.what());
  }
}

Value Evaluator::eval(const ast::Name& node) {
  if (const Value* value = find_name(node.name)) return *value;
  if (const Builtin* builtin = find_global(node.name)) {
    Object& function = runtime_.new_object<BoundMethod>(*builtin, Value());
    return Value::of(&function);
  }
  return Value::undefined("'" + node.name + "' is undefined");
}

Value Evaluator::eval(const ast::ListLiteral& node) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const auto& item : node.items) items.push_back(eval(*item));
  return node.is_tuple ? runtime_.tuple(std::move(items)) : runtime_.list(std::move(items));
}

Value Evaluator::eval(const ast::DictLiteral& node) {
  Dict& dict = runtime_.new_dict();
  for (const auto& [key, value] : node.items) {
    const Value k = eval(*key);
    runtime_.charge(4);
    dict.set(k, eval(*value));
  }
  return Value::of(&dict);
}

Value Evaluator::eval(const ast::Not& node) { return Value::of(!eval(*node.operand).truthy()); }

Value Evaluator::eval(const ast::Negate& node) {
  const Value value = negate(eval(*node.operand));
  return node.positive ? negate(value) : value;
}

Value Evaluator::eval(const ast::Logic& node) {
  Value left = eval(*node.left);
  return left.truthy() == node.is_and ? eval(*node.right) : left;
}

Value Evaluator::eval(const ast::Binary& node) {
  const Value left = eval(*node.left);
  return binary(runtime_, node.op, left, eval(*node.right));
}

Value Evaluator::eval(const ast::Concat& node) {
  std::string text;
  for (const auto& part : node.parts) {
    eval(*part).append_str(runtime_, text);
  }
  return runtime_.text(std::move(text));
}

Value Evaluator::eval(const ast::Compare& node) {
  Value left = eval(*node.first);
  for (const auto& [op, operand] : node.rest) {
    Value right = eval(*operand);
    if (!compare(runtime_, op, left, right)) return Value::of(false);
    left = std::move(right);
  }
  return Value::of(true);
}

Value Evaluator::eval(const ast::Conditional& node) {
  if (eval(*node.condition).truthy()) return eval(*node.then);
  if (node.otherwise) return eval(*node.otherwise);
  return Value::undefined("the inline if-expression evaluated to false and no else was given");
}

Value Evaluator::eval(const ast::Attribute& node) {
  return get_attribute(runtime_, eval(*node.object), node.name);
}

Value Evaluator::eval(const ast::Subscript& node) {
  const Value object = eval(*node.object);
  return get_item(runtime_, object, eval(*node.key));
}

Value Evaluator::eval_or_none(const ast::ExprPtr& expr) {
  return expr ? eval(*expr) : Value::none();
}

Value Evaluator::eval(const ast::Slice& node) {
  const Value object = eval(*node.object);
  const Value start = eval_or_none(node.start), stop = eval_or_none(node.stop);
  return slice(runtime_, object, start, stop, eval_or_none(node.step));
}

Arguments Evaluator::eval(const ast::CallArguments& arguments) {
  Arguments out;
  for (const auto& argument : arguments.positional) out.positional.push_back(eval(*argument));
  for (const auto& [name, argument] : arguments.named) {
    out.named.emplace_back(name, eval(*argument));
  }
  if (arguments.star) {
    const Value list = eval(*arguments.star);
    for (Value& item : iterate(runtime_, list)) out.positional.push_back(std::move(item));
  }
  if (arguments.double_star) {
    const Value dict = eval(*arguments.double_star);
    if (!dict.is_dict()) throw RenderError("argument after ** must be a mapping");
    for (const auto& [key, value] : dict.dict().items()) {
      const std::string name = key.is_string() ? key.string() : "";
      const auto is_name = [&](const auto& given) { return given.first == name; };
      if (!key.is_string() || std::ranges::any_of(out.named, is_name)) {
        throw RenderError("a keyword argument of ** is no text, or given twice");
      }
      runtime_.charge(2);
      out.named.emplace_back(name, value);
    }
  }
  return out;
}

Value Evaluator::call(const Value& callee, const Arguments& arguments) {
  if (callee.is_undefined()) throw RenderError(callee.undefined_message());
  if (!callee.is_object()) {
    throw RenderError("'" + std::string(callee.type_name()) + "' object is not callable");
  }
  return callee.object().call(runtime_, arguments);
}

Value Evaluator::eval(const ast::Call& node) {
  const Value callee = eval(*node.callee);
  return call(callee, eval(node.arguments));
}

Value Evaluator::apply_filters(const ast::Expr& chain, const Value& text) {
  const Restore input(filter_input_, &text);
  return eval(chain);
}

Value Evaluator::eval(const ast::Filter& node) {
  const Value operand = node.operand ? eval(*node.operand) : *filter_input_;
  const Builtin* filter = find_filter(node.name);
  runtime_.charge_reading(operand);
  if (!filter) throw RenderError("No filter named '" + node.name + "'");
  return filter->function(runtime_, operand, eval(node.arguments));
}

Value Evaluator::eval(const ast::Test& node) {
  const Value operand = eval(*node.operand);
  const Builtin* test = find_test(node.name);
  runtime_.charge_reading(operand);
  if (!test) throw RenderError("No test named '" + node.name + "'");
  return Value::of(test->function(runtime_, operand, eval(node.arguments)).boolean() !=
                   node.negated);
}

}  // namespace headwater::jinja
