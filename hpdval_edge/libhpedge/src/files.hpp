#pragma once

#include <stddef.h>

#include <string>

namespace hpdval {

// Bytes that may be appended to what `read_file` gives before all of it is copied.
constexpr size_t SPARE = 4096;

// Throws std::system_error with the system's reason.
std::string read_file(const std::string& path);

// Hex digits in lower case.
std::string sha256(const std::string& data);

}  // namespace hpdval
