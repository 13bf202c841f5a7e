// Inside the library a failure is an exception; hpedge.cpp turns it into a status and a sentence.
#pragma once

#include <stdexcept>
#include <string>

#include "hpedge.h"

namespace hpdval {

// One clear sentence: the value received and the remedy.
class Error : public std::runtime_error {
public:
    Error(hpedge_status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
    hpedge_status status() const { return status_; }

private:
    hpedge_status status_;
};

}  // namespace hpdval
