// load_error: the sentence a call was refused with, "" if it was not.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace headwater::testing {

template <typename Call>
std::string load_error(Call&& call) {
  try {
    call();
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

}  // namespace headwater::testing
