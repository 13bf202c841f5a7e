// Further outputs of an ONNX graph, added to the bytes of its file.
#pragma once

#include <initializer_list>
#include <string>

namespace hpdval {

// Makes a serialised ModelProto's graph give the values `names`, short ones, as further outputs: appends a few bytes.
void add_outputs(std::string& model, std::initializer_list<const char*> names);

}  // namespace hpdval
