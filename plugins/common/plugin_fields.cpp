// Reading and writing of plugin attributes, and the sentences for those that do not fit.
#include "common/plugin_fields.h"

#include <string.h>

#include "common/check.h"

namespace edgercnn {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace {

const char* typeName(PluginFieldType type) {
    constexpr const char* kNames[] = {"FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16",   "INT32",
                                      "CHAR",    "DIMS",    "UNKNOWN", "BF16", "INT64"};
    const auto index = static_cast<size_t>(type);
    return index < sizeof(kNames) / sizeof(kNames[0]) ? kNames[index] : "another type";
}

bool fits(PluginFieldType given, PluginFieldType wanted) {
    const bool isInteger = given == PluginFieldType::kINT32 || given == PluginFieldType::kINT64;
    const bool isFloat = given == PluginFieldType::kFLOAT32 || given == PluginFieldType::kFLOAT64;
    return wanted == PluginFieldType::kINT32 ? isInteger : isFloat;
}

template <typename T>
double numberOf(const void* data, int32_t index) {
    T value;  // a plan's fields need not be aligned
    memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
    return static_cast<double>(value);
}

double numberAt(const PluginField& field, int32_t index) {
    switch (field.type) {
        case PluginFieldType::kINT32: return numberOf<int32_t>(field.data, index);
        case PluginFieldType::kINT64: return numberOf<int64_t>(field.data, index);
        case PluginFieldType::kFLOAT32: return numberOf<float>(field.data, index);
        default: return numberOf<double>(field.data, index);
    }
}

void store(const Attribute& attribute, int32_t index, double number) {
    if (attribute.type == PluginFieldType::kINT32) {
        static_cast<int32_t*>(attribute.values)[index] = static_cast<int32_t>(number);
    } else {
        static_cast<float*>(attribute.values)[index] = static_cast<float>(number);
    }
}

// Nothing for an attribute without default.
void storeDefaults(const Attribute& attribute) {
    for (int32_t index = 0; attribute.defaults != nullptr && index < attribute.count.most; ++index) {
        store(attribute, index, attribute.defaults[index]);
    }
}

}  // namespace

FieldReader::FieldReader(const PluginFieldCollection* fields) {
    if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
        problem_ = "there is no list of attributes, expected a PluginFieldCollection";
        return;
    }
    fields_ = fields->fields;
    numFields_ = fields->nbFields;
    for (int32_t index = 0; index < numFields_; ++index) {
        if (fields_[index].name == nullptr) {
            problem_ = refuse("attribute %d has no name, give it one", index);
            return;
        }
    }
}

const PluginField* FieldReader::find(const char* name) {
    const PluginField* found = nullptr;
    for (int32_t index = 0; index < numFields_; ++index) {
        if (strcmp(fields_[index].name, name) == 0) {
            if (found != nullptr) {
                problem_ = refuse("attribute %s is given twice, give it once", name);
            }
            found = &fields_[index];
        }
    }
    return found;
}

void FieldReader::visit(const Attribute& attribute) {
    names_[numNames_++] = attribute.name;
    if (problem_ != nullptr) {
        return;
    }
    const PluginField* field = find(attribute.name);
    if (problem_ != nullptr) {
        return;
    }
    if (field != nullptr) {
        read(*field, attribute);
    } else if (attribute.defaults != nullptr) {
        storeDefaults(attribute);
    } else {
        problem_ = refuse("attribute %s is missing and has no default, give it", attribute.name);
    }
}

void FieldReader::read(const PluginField& field, const Attribute& attribute) {
    const bool isInteger = attribute.type == PluginFieldType::kINT32;
    if (!fits(field.type, attribute.type)) {
        problem_ = refuse("attribute %s has type %s, expected %s", field.name, typeName(field.type),
                          isInteger ? "INT32 or INT64" : "FLOAT32 or FLOAT64");
        return;
    }
    const auto [fewest, most] = attribute.count;
    if (field.length < fewest || field.length > most || field.data == nullptr) {
        const int32_t length = field.data == nullptr ? 0 : field.length;
        problem_ = fewest == most ? refuse("attribute %s has %d numbers, expected %d", field.name, length, most)
                                  : refuse("attribute %s has %d numbers, expected %d to %d", field.name, length, fewest,
                                           most);
        return;
    }
    for (int32_t index = 0; index < field.length; ++index) {
        const double number = numberAt(field, index);
        if (!(number >= attribute.range.least && number <= attribute.range.greatest)) {  // NaN is refused
            char position[16] = "";
            if (most > 1) {
                snprintf(position, sizeof(position), "[%d]", index);
            }
            const int digits = isInteger ? 17 : 7;
            problem_ = refuse("attribute %s%s is %.*g, expected %s from %.*g to %.*g", field.name, position, digits,
                              number, isInteger ? "an integer" : "a number", digits, attribute.range.least, digits,
                              attribute.range.greatest);
            return;
        }
        store(attribute, index, number);
    }
    if (attribute.length != nullptr) {
        *attribute.length = field.length;
    }
}

const char* FieldReader::problem() {
    for (int32_t index = 0; index < numFields_ && problem_ == nullptr; ++index) {
        bool known = false;
        char names[160] = "";
        for (int32_t i = 0; i < numNames_; ++i) {
            known = known || strcmp(names_[i], fields_[index].name) == 0;
            strncat(names, i == 0 ? "" : ", ", sizeof(names) - strlen(names) - 1);
            strncat(names, names_[i], sizeof(names) - strlen(names) - 1);
        }
        if (!known) {
            problem_ = refuse("there is no attribute %.64s, there are %s", fields_[index].name, names);
        }
    }
    return problem_;
}

void FieldWriter::visit(const Attribute& attribute) {
    const bool isFree = attribute.length != nullptr;
    const void* data = attribute.values;
    int32_t length = isFree ? *attribute.length : attribute.count.most;
    if (content_ == kDefaults) {
        storeDefaults(attribute);
        data = attribute.defaults == nullptr ? nullptr : data;
        length = isFree ? 0 : length;
    }
    fields_[collection_.nbFields++] = PluginField(attribute.name, data, attribute.type, length);
}

const PluginFieldCollection* FieldWriter::fields() {
    collection_.fields = fields_.data();  // here, not in visit: the writer may have been copied
    return &collection_;
}

}  // namespace edgercnn
