// What the `_check` functions of all ops answer with.
#pragma once

#include <stdarg.h>
#include <stdio.h>

namespace edgercnn {

// The sentence that `format` makes, printf's way; it stands until this thread's next refusal.
__attribute__((format(printf, 1, 2))) inline const char* refuse(const char* format, ...) {
    static thread_local char sentence[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof(sentence), format, arguments);
    va_end(arguments);
    return sentence;
}

}  // namespace edgercnn
