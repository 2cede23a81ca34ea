// Above 400 lines: the grammar is one class, a function per rule.
#include "engine/text/jinja/parser.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/lexer.h"

namespace headwater::jinja {
namespace {

using namespace ast;

constexpr int kMaxDepth = 150;  // of nesting in the source
constexpr int kMaxChain = 400;  // operators, filters or lookups one after the other
constexpr size_t kMaxTokens = 200'000;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body run() {
    Body body = parse_body({});
    hard_unknown_.insert(hard_unknown_.end(), unknown_.begin(), unknown_.end());
    if (!hard_unknown_.empty()) throw SyntaxError(hard_unknown_[0].line, hard_unknown_[0].what);
    if (peek().type != TokenType::kEnd) fail("unexpected {% " + peek(1).text + " %}");
    return body;
  }

 private:
  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    const Token& token = peek();
    if (next_ + 1 < tokens_.size()) ++next_;
    return token;
  }
  [[noreturn]] void fail(const std::string& what) const { throw SyntaxError(peek().line, what); }
  [[noreturn]] void fail_expected(const std::string& what) const {
    fail("expected " + what + ", got " +
         (peek().type == TokenType::kEnd ? "the end" : "\"" + peek().text.substr(0, 40) + "\""));
  }
  bool is_op(std::string_view op, size_t ahead = 0) const {
    return peek(ahead).type == TokenType::kOperator && peek(ahead).text == op;
  }
  bool is_name(std::string_view name, size_t ahead = 0) const {
    return peek(ahead).type == TokenType::kName && peek(ahead).text == name;
  }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) fail_expected("\"" + std::string(op) + "\"");
  }
  void expect(TokenType type, const std::string& what) {
    if (peek().type != type) fail_expected(what);
    take();
  }
  void expect_block_end() { expect(TokenType::kBlockEnd, "\"%}\""); }
  std::string expect_name() {
    if (peek().type != TokenType::kName) fail_expected("a name");
    return take().text;
  }

  // jinja2 refuses a filter or test it does not know when it compiles, but for those right inside
  // an if, which may never run; what is inside a loop or macro in there it refuses again.
  struct Unknown {
    int line;
    std::string what;
  };
  class Forgives {
   public:
    explicit Forgives(Parser& parser) : parser_(parser), before_(parser.unknown_.size()) {}
    ~Forgives() { parser_.unknown_.resize(before_); }
    Forgives(const Forgives&) = delete;

   private:
    Parser& parser_;
    size_t before_;
  };
  class Insists {
   public:
    explicit Insists(Parser& parser) : parser_(parser), before_(parser.unknown_.size()) {}
    ~Insists() {
      const auto begin = parser_.unknown_.begin() + static_cast<ptrdiff_t>(before_);
      parser_.hard_unknown_.insert(parser_.hard_unknown_.end(), begin, parser_.unknown_.end());
      parser_.unknown_.resize(before_);
    }
    Insists(const Insists&) = delete;

   private:
    Parser& parser_;
    size_t before_;
  };

  // Counts one level of nesting, or one link of a chain, while it lives.
  class Level {
   public:
    Level(const Parser& parser, int& count, int max) : count_(count) {
      if (++count_ > max) {
        --count_;
        parser.fail("nested deeper than " + std::to_string(max) + " levels");
      }
    }
    ~Level() { --count_; }
    Level(const Level&) = delete;

   private:
    int& count_;
  };
  void check_chain(int length) const {
    if (length > kMaxChain) {
      fail("more than " + std::to_string(kMaxChain) + " operators in a row");
    }
  }

  template <typename Node>
  ExprPtr make(int line, Node node) const {
    return std::make_unique<Expr>(Expr{line, std::move(node)});
  }

  // Up to {% name with name among `ends`, which is left to the caller; or the end of the source.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Level level(*this, depth_, kMaxDepth);
    Body body;
    while (true) {
      const int line = peek().line;
      if (peek().type == TokenType::kEnd) {
        if (ends.size() > 0) fail_expected("{% " + std::string(*(ends.end() - 1)) + " %}");
        return body;
      }
      if (peek().type == TokenType::kText) {
        body.push_back({line, Text{take().text}});
      } else if (peek().type == TokenType::kOutputBegin) {
        take();
        body.push_back({line, Output{parse_tuple(true)}});
        expect(TokenType::kOutputEnd, "\"}}\"");
      } else {
        const auto ends_here = [&](std::string_view end) { return is_name(end, 1); };
        if (std::ranges::any_of(ends, ends_here)) return body;
        if (peek(1).type == TokenType::kName && peek(1).text.starts_with("end")) {
          if (ends.size() == 0) return body;
          take();
          fail_expected("{% " + std::string(*(ends.end() - 1)) + " %}");
        }
        take();
        body.push_back({line, parse_statement()});
      }
    }
  }
  // The body up to {% end %}, that tag included.
  Body parse_block(std::string_view end) {
    expect_block_end();
    Body body = parse_body({end});
    take(), take();
    expect_block_end();
    return body;
  }

  // The same, where the end may repeat the name.
  Body parse_named_block(std::string_view end, const std::string& name) {
    expect_block_end();
    Body body = parse_body({end});
    take(), take();
    if (peek().type == TokenType::kName && !skip_name(name)) fail_expected("the block's name");
    expect_block_end();
    return body;
  }

  Stmt::Node parse_statement() {
    const std::string name = expect_name();
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "call") return parse_call_block();
    if (name == "with") return parse_with();
    if (name == "block") {  // without inheritance, its content
      const std::string block = expect_name();
      if (std::ranges::find(blocks_, block) != blocks_.end()) {
        fail("block '" + block + "' defined twice");
      }
      blocks_.push_back(block);
      return Scoped{parse_named_block("endblock", block)};
    }
    if (name == "generation") return Scoped{parse_block("endgeneration")};
    if (name == "do") {
      Do node{parse_tuple(true)};
      expect_block_end();
      return node;
    }
    if (name == "filter") {
      ExprPtr filter = parse_filters(nullptr, true);
      return FilterBlock{std::move(filter), parse_block("endfilter")};
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail("{% " + name + " %} outside of a loop");
      expect_block_end();
      if (name == "break") return Break{};
      return Continue{};
    }
    fail("{% " + name + " %} is not supported in a chat template");
  }

  If parse_if() {
    If node;
    const Forgives forgives(*this);
    while (true) {
      ExprPtr condition = parse_tuple(false);
      expect_block_end();
      node.branches.emplace_back(std::move(condition), parse_body({"elif", "else", "endif"}));
      take();
      const std::string next = take().text;
      if (next == "elif") continue;
      if (next == "else") {
        expect_block_end();
        node.otherwise = parse_body({"endif"});
        take(), take();
      }
      expect_block_end();
      return node;
    }
  }

  For parse_for() {
    For node;
    node.target = parse_target(false);
    if (!skip_name("in")) fail_expected("\"in\"");
    node.iterable = parse_tuple(false);
    if (skip_name("if")) node.condition = parse_expression();
    node.recursive = skip_name("recursive");
    expect_block_end();
    const Insists insists(*this);
    ++loops_;
    node.body = parse_body({"else", "endfor"});
    --loops_;
    take();
    if (take().text == "else") {
      expect_block_end();
      node.otherwise = parse_body({"endfor"});
      take(), take();
    }
    expect_block_end();
    return node;
  }

  Target parse_target(bool with_attribute) {
    const Level level(*this, depth_, kMaxDepth);
    Target first = parse_target_part(with_attribute);
    if (!is_op(",") || !first.attribute.empty()) return first;
    Target target;
    target.unpacks = true;
    target.parts.push_back(std::move(first));
    while (skip_op(",")) {
      if (peek().type != TokenType::kName && !is_op("(")) break;
      if (is_name("in")) break;
      target.parts.push_back(parse_target_part(false));
    }
    return target;
  }

  Target parse_target_part(bool with_attribute) {
    if (skip_op("(")) {
      Target target = parse_target(false);
      expect_op(")");
      return target;
    }
    Target target;
    target.name = expect_target_name();
    if (with_attribute && skip_op(".")) target.attribute = expect_name();
    return target;
  }

  std::string expect_target_name() {
    for (const std::string_view constant : {"true", "True", "false", "False", "none", "None"}) {
      if (is_name(constant)) fail("can't assign to \"" + std::string(constant) + "\"");
    }
    return expect_name();
  }

  Stmt::Node parse_set() {
    Target target = parse_target(true);
    if (skip_op("=")) {
      Set node{std::move(target), parse_tuple(true)};
      expect_block_end();
      return node;
    }
    ExprPtr filter = is_op("|") ? parse_filters(nullptr, false) : nullptr;
    return SetBlock{std::move(target), std::move(filter), parse_block("endset")};
  }

  With parse_with() {
    With node;
    while (peek().type != TokenType::kBlockEnd) {
      if (!node.values.empty()) expect_op(",");
      Target target = parse_target(false);
      expect_op("=");
      node.values.emplace_back(std::move(target), parse_expression());
    }
    node.body = parse_block("endwith");
    return node;
  }

  std::vector<Parameter> parse_parameters() {
    std::vector<Parameter> parameters;
    expect_op("(");
    while (!skip_op(")")) {
      if (!parameters.empty()) expect_op(",");
      Parameter parameter{expect_name(), nullptr};
      if (skip_op("=")) {
        parameter.fallback = parse_expression();
      } else if (!parameters.empty() && parameters.back().fallback) {
        fail("a parameter without a default follows one with a default");
      }
      parameters.push_back(std::move(parameter));
    }
    return parameters;
  }

  void parse_callable_body(std::string_view end, Macro& macro) {
    const Insists insists(*this);
    const int loops = std::exchange(loops_, 0);
    const Uses outer = std::exchange(uses_, Uses{});
    macro.body = parse_block(end);
    macro.takes_varargs = uses_.varargs;
    macro.takes_kwargs = uses_.kwargs;
    macro.takes_caller = uses_.caller;
    uses_ = {
        uses_.varargs || outer.varargs, uses_.kwargs || outer.kwargs, uses_.caller || outer.caller};
    loops_ = loops;
  }

  Macro parse_macro() {
    Macro node;
    node.name = expect_name();
    node.parameters = parse_parameters();
    parse_callable_body("endmacro", node);
    return node;
  }

  CallBlock parse_call_block() {
    CallBlock node;
    node.caller.name = "caller";
    if (is_op("(")) node.caller.parameters = parse_parameters();
    node.call = parse_expression();
    if (!std::holds_alternative<Call>(node.call->node)) fail_expected("a call");
    parse_callable_body("endcall", node.caller);
    return node;
  }

  ExprPtr parse_tuple(bool with_conditional) {
    const auto item = [&] { return with_conditional ? parse_expression() : parse_or(); };
    const int line = peek().line;
    ExprPtr first = item();
    if (!is_op(",")) return first;
    ListLiteral tuple{{}, true};
    tuple.items.push_back(std::move(first));
    while (skip_op(",")) {
      const TokenType type = peek().type;
      if (type == TokenType::kBlockEnd || type == TokenType::kOutputEnd || is_op(")") ||
          is_op("]")) {
        break;
      }
      tuple.items.push_back(item());
    }
    return make(line, std::move(tuple));
  }

  ExprPtr parse_expression() {
    const Level level(*this, depth_, kMaxDepth);
    const int line = peek().line;
    const size_t before = unknown_.size();
    ExprPtr value = parse_or();
    for (int n = 0; skip_name("if"); ++n) {
      check_chain(n);
      ExprPtr condition = parse_or();
      ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
      value = make(line, Conditional{std::move(condition), std::move(value), std::move(otherwise)});
      unknown_.resize(before);
    }
    return value;
  }

  ExprPtr parse_or() {
    const int line = peek().line;
    ExprPtr left = parse_and();
    for (int n = 0; skip_name("or"); ++n) {
      check_chain(n);
      left = make(line, Logic{false, std::move(left), parse_and()});
    }
    return left;
  }

  ExprPtr parse_and() {
    const int line = peek().line;
    ExprPtr left = parse_not();
    for (int n = 0; skip_name("and"); ++n) {
      check_chain(n);
      left = make(line, Logic{true, std::move(left), parse_not()});
    }
    return left;
  }

  ExprPtr parse_not() {
    const Level level(*this, depth_, kMaxDepth);
    const int line = peek().line;
    if (skip_name("not")) return make(line, Not{parse_not()});
    return parse_compare();
  }

  std::optional<CompareOp> take_compare() {
    struct Row {
      std::string_view text;
      CompareOp op;
    };
    constexpr std::array<Row, 6> kTable = {{{"==", CompareOp::kEq},
                                            {"!=", CompareOp::kNe},
                                            {"<", CompareOp::kLt},
                                            {"<=", CompareOp::kLe},
                                            {">", CompareOp::kGt},
                                            {">=", CompareOp::kGe}}};
    for (const Row& row : kTable) {
      if (skip_op(row.text)) return row.op;
    }
    if (skip_name("in")) return CompareOp::kIn;
    if (is_name("not") && is_name("in", 1)) {
      take(), take();
      return CompareOp::kNotIn;
    }
    return std::nullopt;
  }

  ExprPtr parse_compare() {
    const int line = peek().line;
    Compare node{parse_sum(), {}};
    while (const auto op = take_compare()) node.rest.emplace_back(*op, parse_sum());
    return node.rest.empty() ? std::move(node.first) : make(line, std::move(node));
  }

  ExprPtr parse_sum() {
    const int line = peek().line;
    ExprPtr left = parse_concat();
    for (int n = 0; is_op("+") || is_op("-"); ++n) {
      check_chain(n);
      const BinaryOp op = take().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
      left = make(line, Binary{op, std::move(left), parse_concat()});
    }
    return left;
  }

  ExprPtr parse_concat() {
    const int line = peek().line;
    Concat node;
    do {
      node.parts.push_back(parse_product());
    } while (skip_op("~"));
    return node.parts.size() == 1 ? std::move(node.parts[0]) : make(line, std::move(node));
  }

  std::optional<BinaryOp> take_product_op() {
    if (skip_op("*")) return BinaryOp::kMul;
    if (skip_op("/")) return BinaryOp::kDiv;
    if (skip_op("//")) return BinaryOp::kFloorDiv;
    if (skip_op("%")) return BinaryOp::kMod;
    return std::nullopt;
  }

  ExprPtr parse_product() {
    const int line = peek().line;
    ExprPtr left = parse_power();
    for (int n = 0;; ++n) {
      const std::optional<BinaryOp> op = take_product_op();
      if (!op) return left;
      check_chain(n);
      left = make(line, Binary{*op, std::move(left), parse_power()});
    }
  }

  ExprPtr parse_power() {
    const int line = peek().line;
    ExprPtr left = parse_unary(true);
    for (int n = 0; skip_op("**"); ++n) {
      check_chain(n);
      left = make(line, Binary{BinaryOp::kPow, std::move(left), parse_unary(true)});
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filters) {
    const Level level(*this, depth_, kMaxDepth);
    const int line = peek().line;
    ExprPtr value;
    if (is_op("-") || is_op("+")) {
      const bool positive = take().text == "+";
      value = make(line, Negate{parse_unary(false), positive});
    } else {
      value = parse_postfix(parse_primary());
    }
    return with_filters ? parse_filters(std::move(value), false) : std::move(value);
  }

  ExprPtr parse_primary() {
    const Level level(*this, depth_, kMaxDepth);
    const int line = peek().line;
    const Token token = peek();
    switch (token.type) {
      case TokenType::kName:
        take();
        if (token.text == "true" || token.text == "True")
          return make(line, Literal{Value::of(true)});
        if (token.text == "false" || token.text == "False") {
          return make(line, Literal{Value::of(false)});
        }
        if (token.text == "none" || token.text == "None") return make(line, Literal{Value::none()});
        uses_.varargs |= token.text == "varargs";
        uses_.kwargs |= token.text == "kwargs";
        uses_.caller |= token.text == "caller";
        return make(line, Name{token.text});
      case TokenType::kString: {
        std::string text;
        while (peek().type == TokenType::kString) text += take().text;
        return make(line, Literal{Value::of(std::move(text))});
      }
      case TokenType::kInteger:
        return make(line, Literal{Value::of(parse_integer(take().text))});
      case TokenType::kFloat:
        return make(line, Literal{Value::of(parse_float(take().text))});
      default:
        break;
    }
    if (skip_op("(")) {
      if (skip_op(")")) return make(line, ListLiteral{{}, true});
      ExprPtr value = parse_tuple(true);
      expect_op(")");
      return value;
    }
    if (skip_op("[")) return parse_list(line);
    if (skip_op("{")) return parse_dict(line);
    fail_expected("an expression");
  }

  int64_t parse_integer(const std::string& text) const {
    int base = 10;
    std::string_view digits = text;
    if (text.size() > 1 && text[0] == '0' && !(text[1] >= '0' && text[1] <= '9')) {
      base = (text[1] | 32) == 'x' ? 16 : (text[1] | 32) == 'o' ? 8 : 2;
      digits.remove_prefix(2);
    }
    int64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (result.ec != std::errc() || result.ptr != digits.data() + digits.size()) {
      fail("\"" + text.substr(0, 40) + "\" is no integer of 64 bits");
    }
    return value;
  }

  double parse_float(const std::string& text) const {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc()) fail("\"" + text.substr(0, 40) + "\" is no number in range");
    return value;
  }

  ExprPtr parse_list(int line) {
    ListLiteral node{{}, false};
    while (!skip_op("]")) {
      if (!node.items.empty()) {
        expect_op(",");
        if (skip_op("]")) break;
      }
      node.items.push_back(parse_expression());
    }
    return make(line, std::move(node));
  }

  ExprPtr parse_dict(int line) {
    DictLiteral node;
    while (!skip_op("}")) {
      if (!node.items.empty()) {
        expect_op(",");
        if (skip_op("}")) break;
      }
      ExprPtr key = parse_expression();
      expect_op(":");
      node.items.emplace_back(std::move(key), parse_expression());
    }
    return make(line, std::move(node));
  }

  ExprPtr parse_postfix(ExprPtr value) {
    for (int n = 0;; ++n) {
      check_chain(n);
      const int line = peek().line;
      if (skip_op(".")) {
        if (peek().type == TokenType::kInteger) {
          ExprPtr index = make(line, Literal{Value::of(parse_integer(take().text))});
          value = make(line, Subscript{std::move(value), std::move(index)});
        } else {
          value = make(line, Attribute{std::move(value), expect_name()});
        }
      } else if (skip_op("[")) {
        value = parse_subscript(std::move(value), line);
      } else if (is_op("(")) {
        value = make(line, Call{std::move(value), parse_arguments()});
      } else {
        return value;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object, int line) {
    const auto bound = [&]() -> ExprPtr {
      return is_op(":") || is_op("]") ? nullptr : parse_expression();
    };
    ExprPtr start = bound();
    if (!is_op(":")) {
      if (!start) fail_expected("an index");
      expect_op("]");
      return make(line, Subscript{std::move(object), std::move(start)});
    }
    take();
    ExprPtr stop = bound();
    ExprPtr step = skip_op(":") ? bound() : nullptr;
    expect_op("]");
    return make(line, Slice{std::move(object), std::move(start), std::move(stop), std::move(step)});
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_op("(");
    bool first = true;
    while (!skip_op(")")) {
      if (!std::exchange(first, false)) {
        expect_op(",");
        if (skip_op(")")) break;
      }
      if (skip_op("**")) {
        if (arguments.double_star) fail("** is given twice");
        arguments.double_star = parse_expression();
      } else if (skip_op("*")) {
        if (arguments.star || arguments.double_star) fail("* is given twice, or after **");
        arguments.star = parse_expression();
      } else if (arguments.double_star) {
        fail("an argument follows **");
      } else if (peek().type == TokenType::kName && is_op("=", 1)) {
        std::string name = take().text;
        take();
        arguments.named.emplace_back(std::move(name), parse_expression());
      } else if (!arguments.named.empty() || arguments.star) {
        fail("a positional argument follows a keyword argument or *");
      } else {
        arguments.positional.push_back(parse_expression());
      }
    }
    return arguments;
  }

  // | filter, is test and, after those, calls. first_is_bare: the first filter has no "|".
  ExprPtr parse_filters(ExprPtr value, bool first_is_bare) {
    for (int n = 0;; ++n) {
      check_chain(n);
      const int line = peek().line;
      if (std::exchange(first_is_bare, false) || skip_op("|")) {
        std::string name = parse_dotted();
        if (!find_filter(name)) unknown_.push_back({line, "No filter named '" + name + "'"});
        CallArguments arguments = is_op("(") ? parse_arguments() : CallArguments{};
        value = make(line, Filter{std::move(value), std::move(name), std::move(arguments)});
      } else if (value && skip_name("is")) {
        value = parse_test(std::move(value), line);
      } else if (value && is_op("(")) {
        value = make(line, Call{std::move(value), parse_arguments()});
      } else {
        return value;
      }
    }
  }

  std::string parse_dotted() {
    std::string name = expect_name();
    while (skip_op(".")) name.append(1, '.').append(expect_name());
    return name;
  }

  ExprPtr parse_test(ExprPtr operand, int line) {
    Test node;
    node.negated = skip_name("not");
    node.operand = std::move(operand);
    node.name = parse_dotted();
    if (!find_test(node.name)) unknown_.push_back({line, "No test named '" + node.name + "'"});
    const TokenType type = peek().type;
    const bool is_word = is_name("else") || is_name("or") || is_name("and");
    if (is_op("(")) {
      node.arguments = parse_arguments();
    } else if ((type == TokenType::kName && !is_word) || type == TokenType::kString ||
               type == TokenType::kInteger || type == TokenType::kFloat || is_op("[") ||
               is_op("{") || is_op("(")) {
      if (is_name("is")) fail("tests cannot follow each other with \"is\"");
      node.arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    return make(line, std::move(node));
  }

  std::vector<Token> tokens_;
  size_t next_ = 0;
  // Names of the macro being parsed, and of those inside it.
  struct Uses {
    bool varargs = false, kwargs = false, caller = false;
  };

  int depth_ = 0;
  int loops_ = 0;
  std::vector<std::string> blocks_;
  std::vector<Unknown> unknown_, hard_unknown_;
  Uses uses_;
};

}  // namespace

ast::Body parse(std::string_view source) {
  std::vector<Token> tokens = tokenize(source);
  if (tokens.size() > kMaxTokens) {
    throw SyntaxError(tokens.back().line, "more than " + std::to_string(kMaxTokens) + " tokens");
  }
  return Parser(std::move(tokens)).run();
}

}  // namespace headwater::jinja
