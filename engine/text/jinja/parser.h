// Template text -> syntax tree.
#pragma once

#include <string_view>

#include "engine/text/jinja/ast.h"

namespace headwater::jinja {

// source: valid UTF-8. Throws SyntaxError (lexer.h). The tree's depth is bounded.
ast::Body parse(std::string_view source);

}  // namespace headwater::jinja
