#pragma once

#include <string>

namespace hpdval {

// Throws std::system_error with the system's reason.
std::string read_file(const std::string& path);

// Hex digits in lower case.
std::string sha256(const std::string& data);

}  // namespace hpdval
