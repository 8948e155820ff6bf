// Attributes of a plugin, which TensorRT calls fields. An op lists its attributes once, in
//
//     void attributes(Attributes& list) {
//         list.number("nms_threshold", op.nms_threshold, {0, 1}, {0.7});      // from 0 to 1, by default 0.7
//         list.integers("strides", strides, numStrides, 2, {0, 65536});       // 2 or more numbers; must be given
//     }
//
// and the list serves both directions: FieldReader fills the variables from what TensorRT hands over and refuses what
// does not fit, FieldWriter makes the fields that TensorRT stores in a plan, or whose names it asks for.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <initializer_list>

namespace edgercnn {

constexpr int32_t kMaxFields = 12;
constexpr double kMostInteger = 2147483647;
constexpr double kMostFloat = 1e30;

struct Range {  // both ends are in it
    double least, greatest;
};

constexpr Range kFraction = {0, 1};
constexpr Range kPositive = {1e-6, 1e6};
constexpr double kBoxClip = 4.135166556742356;  // log(1000 / 16), torchvision's

struct Count {
    int32_t fewest, most;
};

struct Attribute {
    const char* name;
    nvinfer1::PluginFieldType type;  // kINT32 or kFLOAT32
    void* values;
    int32_t* length;  // of a list whose length is free, else null
    Count count;
    Range range;  // of each number
    const double* defaults;  // count.most numbers, or null: it must be given
};

class Attributes {
public:
    using Defaults = std::initializer_list<double>;

    void integer(const char* name, int32_t& value, Range range, Defaults defaults = {}) {
        visit({name, nvinfer1::PluginFieldType::kINT32, &value, nullptr, {1, 1}, range, first(defaults)});
    }
    void number(const char* name, float& value, Range range, Defaults defaults = {}) {
        visit({name, nvinfer1::PluginFieldType::kFLOAT32, &value, nullptr, {1, 1}, range, first(defaults)});
    }
    template <int32_t kSize>
    void numbers(const char* name, float (&values)[kSize], Range range, Defaults defaults = {}) {
        visit({name, nvinfer1::PluginFieldType::kFLOAT32, values, nullptr, {kSize, kSize}, range, first(defaults)});
    }
    template <int32_t kSize>
    void numbers(const char* name, float (&values)[kSize], int32_t& length, int32_t fewest, Range range) {
        visit({name, nvinfer1::PluginFieldType::kFLOAT32, values, &length, {fewest, kSize}, range, nullptr});
    }
    template <int32_t kSize>
    void integers(const char* name, int32_t (&values)[kSize], int32_t& length, int32_t fewest, Range range) {
        visit({name, nvinfer1::PluginFieldType::kINT32, values, &length, {fewest, kSize}, range, nullptr});
    }

protected:
    ~Attributes() = default;
    virtual void visit(const Attribute& attribute) = 0;

private:
    static const double* first(Defaults defaults) { return defaults.size() == 0 ? nullptr : defaults.begin(); }
};

// Reads the fields that a creator was given. Numbers may come as 32 or 64 bits, lists of integers do from Python.
class FieldReader final : public Attributes {
public:
    explicit FieldReader(const nvinfer1::PluginFieldCollection* fields);

    // After the op's list: null, or the sentence that says what was wrong first.
    const char* problem();

private:
    void visit(const Attribute& attribute) override;
    const nvinfer1::PluginField* find(const char* name);
    void read(const nvinfer1::PluginField& field, const Attribute& attribute);

    const nvinfer1::PluginField* fields_ = nullptr;
    int32_t numFields_ = 0;
    std::array<const char*, kMaxFields> names_{};  // of the attributes there are
    int32_t numNames_ = 0;
    const char* problem_ = nullptr;
};

// Makes fields that point to the op's variables.
class FieldWriter final : public Attributes {
public:
    // kValues: what a plan stores. kDefaults: what a creator can be given; the variables are set to the defaults, and
    // the data of an attribute without default is null.
    enum Content { kValues, kDefaults };

    explicit FieldWriter(Content content) : content_(content) {}
    const nvinfer1::PluginFieldCollection* fields();

private:
    void visit(const Attribute& attribute) override;

    Content content_;
    std::array<nvinfer1::PluginField, kMaxFields> fields_{};
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace edgercnn
