// The syntax tree of a template. Immutable once parsed; shared by concurrent renders.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/value.h"

namespace headwater::jinja::ast {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;
struct Stmt;
using Body = std::vector<Stmt>;

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, double_star;  // *list and **dict; may be null
};

struct Literal {
  Value value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  std::vector<ExprPtr> items;
  bool is_tuple;
};
struct DictLiteral {
  std::vector<std::pair<ExprPtr, ExprPtr>> items;
};
struct Not {
  ExprPtr operand;
};
struct Negate {
  ExprPtr operand;
  bool positive;  // a plus sign: only checks that it is a number
};
struct Logic {
  bool is_and;
  ExprPtr left, right;
};
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
};
struct Concat {
  std::vector<ExprPtr> parts;
};
struct Compare {
  ExprPtr first;
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
};
struct Conditional {
  ExprPtr condition, then, otherwise;  // otherwise may be null: undefined
};
struct Attribute {
  ExprPtr object;
  std::string name;
};
struct Subscript {
  ExprPtr object, key;
};
struct Slice {
  ExprPtr object, start, stop, step;  // bounds may be null
};
struct Call {
  ExprPtr callee;
  CallArguments arguments;
};
struct Filter {
  ExprPtr operand;  // null in a filter block: the block's text
  std::string name;
  CallArguments arguments;
};
struct Test {
  ExprPtr operand;
  std::string name;
  CallArguments arguments;
  bool negated;
};

struct Expr {
  using Node = std::variant<Literal,
                            Name,
                            ListLiteral,
                            DictLiteral,
                            Not,
                            Negate,
                            Logic,
                            Binary,
                            Concat,
                            Compare,
                            Conditional,
                            Attribute,
                            Subscript,
                            Slice,
                            Call,
                            Filter,
                            Test>;
  int line;
  Node node;
};

struct Text {
  std::string text;
};
struct Output {
  ExprPtr value;
};
struct If {
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body otherwise;
};
// A name, name.attribute, or several targets to unpack into.
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> parts;
  bool unpacks = false;
};
struct For {
  Target target;
  ExprPtr iterable;
  ExprPtr condition;  // may be null
  bool recursive = false;
  Body body, otherwise;
};
struct Set {
  Target target;
  ExprPtr value;
};
struct SetBlock {
  Target target;
  ExprPtr filter;  // a chain of Filter, or null
  Body body;
};
struct FilterBlock {
  ExprPtr filter;
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExprPtr>> values;
  Body body;
};
struct Parameter {
  std::string name;
  ExprPtr fallback;  // may be null
};
struct Macro {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  // Whether the body names what holds further arguments, and the caller.
  bool takes_varargs = false, takes_kwargs = false, takes_caller = false;
};
struct CallBlock {
  Macro caller;
  ExprPtr call;
};
struct Do {  // an expression for what it does
  ExprPtr value;
};
struct Scoped {  // a block that changes nothing but the scope: {% generation %}
  Body body;
};
struct Break {};
struct Continue {};

struct Stmt {
  using Node = std::variant<Text,
                            Output,
                            If,
                            For,
                            Set,
                            SetBlock,
                            FilterBlock,
                            With,
                            Macro,
                            CallBlock,
                            Do,
                            Scoped,
                            Break,
                            Continue>;
  int line;
  Node node;
};

}  // namespace headwater::jinja::ast
