// Fibers, for cpu_grid.cpp: stacks, and the few instructions that switch from one to another.
//
// ucontext would do, and does on other processors or where EDGERCNN_CPU_UCONTEXT is defined, but it calls the system in
// every switch, which takes ten times as long.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#if defined(EDGERCNN_CPU_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#define EDGERCNN_SWITCH_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EDGERCNN_NOT_SANITIZED __attribute__((no_sanitize_address))
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) static_cast<void>(address)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) static_cast<void>(address)
#define EDGERCNN_NOT_SANITIZED
#endif

namespace edgercnn {
namespace cpu_grid {

#ifdef EDGERCNN_SWITCH_UCONTEXT
using Context = ucontext_t;
inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
inline void switchContexts(Context& from, Context& to) { swapcontext(&from, &to); }
#else
// A context is a stack pointer, to the registers that a function must keep; a new one has zeros there and `entry` for
// the address to return to. edgercnn_switch stores the registers, *from = sp, sp = to, and loads them.
using Context = void*;
extern "C" void edgercnn_switch(Context* from, Context to);
#ifdef __x86_64__
constexpr int kReturnAddress = 6;  // in words from the stack pointer, after rbp, rbx, r12 to r15
asm(".text; .hidden edgercnn_switch; .globl edgercnn_switch; .type edgercnn_switch, @function; edgercnn_switch:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp, (%rdi); mov %rsi, %rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
    ".size edgercnn_switch, . - edgercnn_switch");
#else
constexpr int kReturnAddress = 11;  // x30, after x19 to x29, before d8 to d15
asm(".text; .hidden edgercnn_switch; .globl edgercnn_switch; .type edgercnn_switch, %function; edgercnn_switch:\n"
    "stp x19, x20, [sp, #-160]!; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]; mov x9, sp; str x9, [x0]; mov sp, x1\n"
    "ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]; ldp x27, x28, [sp, #64]\n"
    "ldp x29, x30, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]; ldp x19, x20, [sp], #160; ret\n"
    ".size edgercnn_switch, . - edgercnn_switch");
#endif
EDGERCNN_NOT_SANITIZED inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
    uintptr_t* words = reinterpret_cast<uintptr_t*>(stack + bytes) - 20;  // so that sp is on entry as the ABI wants it
    for (int i = 0; i < 20; ++i) words[i] = 0;
    words[kReturnAddress] = reinterpret_cast<uintptr_t>(entry);
    context = words;
}
inline void switchContexts(Context& from, Context& to) { edgercnn_switch(&from, to); }
#endif

struct Fiber {
    Context context;
    unsigned char* stack;  // its lowest byte
    size_t bytes;
    void* fake_stack;  // AddressSanitizer's, while the fiber is left
};

// A fiber's entry function begins with this.
EDGERCNN_NOT_SANITIZED inline void arrive(Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#else
    static_cast<void>(self);
#endif
}

// Returns when another fiber switches back to `from`; never, if it `ends`.
EDGERCNN_NOT_SANITIZED inline void switchFibers(Fiber& from, Fiber& to, bool ends) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.bytes);
#else
    static_cast<void>(ends);
#endif
    switchContexts(from.context, to.context);
    arrive(from);
}

// A number of fibers, and `extra` bytes, in one piece of memory; `caller` is the OS thread on its own stack.
class Fibers {
public:
    Fiber caller;
    unsigned char* extra = nullptr;

    bool allocate(size_t number, size_t extra_bytes) {
        if (memory_) return true;
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), stride = page + kStackBytes;
        bytes_ = number * stride + page + extra_bytes;
        constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, kFlags, -1, 0);
        if (memory == MAP_FAILED) return false;
        memory_ = static_cast<unsigned char*>(memory);
        extra = memory_ + number * stride + page;
        fibers_.resize(number);
        for (size_t i = 0; i < number; ++i) {
            mprotect(memory_ + i * stride, page, PROT_NONE);  // too deep a stack is a segmentation fault
            fibers_[i].stack = memory_ + i * stride + page;
            // Staggered by up to a page: else the tops of all stacks would compete for the same lines of the cache.
            fibers_[i].bytes = kStackBytes - (i + i / 16) % 16 * 256;
        }
#ifdef __SANITIZE_ADDRESS__
        pthread_attr_t attributes;
        void* stack;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack, &caller.bytes);
        pthread_attr_destroy(&attributes);
        caller.stack = static_cast<unsigned char*>(stack);
#endif
        freeAll();
        return true;
    }

    ~Fibers() {
        ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_);
        if (memory_) munmap(memory_, bytes_);
    }

    // Every fiber, whatever is on its stack.
    void freeAll() {
        ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_);
        free_.clear();
        for (size_t i = fibers_.size(); i > 0; --i) free_.push_back(&fibers_[i - 1]);
    }

    Fiber* take(void (*entry)()) {
        Fiber* fiber = free_.back();
        free_.pop_back();
        fiber->fake_stack = nullptr;
        prepare(fiber->context, fiber->stack, fiber->bytes, entry);
        return fiber;
    }

    void give(Fiber* fiber) { free_.push_back(fiber); }

private:
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t kStackBytes = 256 * 1024;
#else
    static constexpr size_t kStackBytes = 64 * 1024;
#endif
    unsigned char* memory_ = nullptr;
    size_t bytes_ = 0;
    std::vector<Fiber> fibers_;
    std::vector<Fiber*> free_;
};

}  // namespace cpu_grid
}  // namespace edgercnn
