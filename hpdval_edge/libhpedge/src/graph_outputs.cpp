#include "graph_outputs.hpp"

#include <assert.h>

namespace hpdval {
namespace {

// Tags of the fields in protobuf: ModelProto.graph, GraphProto.output, ValueInfoProto.name, each with a length.
constexpr char GRAPH = 7 << 3 | 2, OUTPUT = 12 << 3 | 2, NAME = 1 << 3 | 2;

std::string field(char tag, const std::string& content) {
    // One byte holds lengths up to 127.
    assert(content.size() < 128);
    return std::string{tag, static_cast<char>(content.size())} + content;
}

}  // namespace

// Messages in protobuf may be written in pieces that follow one another: readers put them together again.
void add_outputs(std::string& model, std::initializer_list<const char*> names) {
    for (const char* name : names) model += field(GRAPH, field(OUTPUT, field(NAME, name)));
}

}  // namespace hpdval
