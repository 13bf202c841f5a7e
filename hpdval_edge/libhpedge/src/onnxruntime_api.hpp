// What we call of ONNX Runtime's C API, so that its headers need not be installed. OrtApi is a table of function
// pointers that grows at its end alone (onnxruntime_c_api.h says so); all of these stand in its first version.
// tests/cpp/onnxruntime_api_test.cpp compares the positions with those of the real header.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hpdval::ort {

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct TensorInfo;
struct SessionOptions;

constexpr int LOG_ERRORS = 3, DEVICE_ALLOCATOR = 0, DEFAULT_MEMORY = 0;
constexpr int FLOAT = 1, UINT8 = 2, FLOAT16 = 10;
constexpr int FAIL = 1, INVALID_PROTOBUF = 7, NOT_IMPLEMENTED = 9, INVALID_GRAPH = 10;

// A member at `POSITION` of the table.
template <size_t POSITION, class Function>
struct Entry {
    static constexpr size_t position = POSITION;
    Function* operator()(const void* const* table) const { return reinterpret_cast<Function*>(table[POSITION]); }
};

constexpr Entry<1, int(const Status*)> GetErrorCode{};
constexpr Entry<2, const char*(const Status*)> GetErrorMessage{};
constexpr Entry<3, Status*(int level, const char* name, Env**)> CreateEnv{};
constexpr Entry<8, Status*(const Env*, const void* model, size_t bytes, const SessionOptions*, Session**)>
    CreateSessionFromArray{};
constexpr Entry<9, Status*(Session*, const RunOptions*, const char* const* names, const Value* const* inputs, size_t,
                           const char* const* output_names, size_t, Value** outputs)> Run{};
constexpr Entry<10, Status*(SessionOptions**)> CreateSessionOptions{};
constexpr Entry<22, Status*(SessionOptions*, int level)> SetSessionLogSeverityLevel{};
constexpr Entry<24, Status*(SessionOptions*, int threads)> SetIntraOpNumThreads{};
constexpr Entry<49, Status*(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t rank, int type,
                            Value**)> CreateTensorWithDataAsOrtValue{};
constexpr Entry<51, Status*(Value*, void** data)> GetTensorMutableData{};
constexpr Entry<60, Status*(const TensorInfo*, int* type)> GetTensorElementType{};
constexpr Entry<64, Status*(const TensorInfo*, size_t* count)> GetTensorShapeElementCount{};
constexpr Entry<65, Status*(const Value*, TensorInfo**)> GetTensorTypeAndShape{};
constexpr Entry<69, Status*(int allocator, int memory, MemoryInfo**)> CreateCpuMemoryInfo{};
constexpr Entry<92, void(Env*)> ReleaseEnv{};
constexpr Entry<93, void(Status*)> ReleaseStatus{};
constexpr Entry<94, void(MemoryInfo*)> ReleaseMemoryInfo{};
constexpr Entry<95, void(Session*)> ReleaseSession{};
constexpr Entry<96, void(Value*)> ReleaseValue{};
constexpr Entry<99, void(TensorInfo*)> ReleaseTensorTypeAndShapeInfo{};
constexpr Entry<100, void(SessionOptions*)> ReleaseSessionOptions{};

// What OrtGetApiBase returns.
struct Base {
    const void* const* (*get_api)(uint32_t version);
    const char* (*version)();
};

// The oldest that the Python package asks for, 1.18.
constexpr uint32_t API_VERSION = 18;

}  // namespace hpdval::ort
