// The state of a block for cpu_grid.cpp: which thread is next, and which threads wait where.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/cpu_grid.h"
#include "common/cpu_grid_fiber.h"

namespace edgercnn {
namespace cpu_grid {

constexpr int kMaxThreads = 1024;

enum State : uint8_t { kNotStarted, kReady, kRunning, kWaiting, kEnded };

struct Thread {
    State state;
    Fiber* fiber;
    Site site;  // of the last wait
};

// Slots are used by turns: the first lanes to go on may be at the next exchange while others still read the last one.
struct Slot : Exchange {
    int arrived;
    Site site;
};

struct Warp {
    unsigned turn;
    Slot slots[2];
};

struct Barrier {
    unsigned turn;
    Vote votes[2];
    Site site;
};

// All that one OS thread needs to run grids.
struct Machine {
    int32_t schedule = kForward;
    uint64_t random = 0;
    std::string fault;

    void (*thread_body)(void*);
    void* context;
    int count, live, runnable;  // threads of the block, those not ended, those not started or ready
    bool faulted;
    Thread* current;
    Thread threads[kMaxThreads];
    int order[kMaxThreads], position;  // the next to look at
    Warp warps[kMaxThreads / kLanes];
    Barrier barrier;
    Fibers fibers;
};

template <typename T>
void shuffleOrder(uint64_t& random, T* values, size_t number) {
    for (size_t i = number; i > 1; --i) {
        uint64_t bits = random += 0x9e3779b97f4a7c15u;  // splitmix64
        bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
        std::swap(values[i - 1], values[(bits >> 32) * i >> 32]);
    }
}

inline void beginRound(Machine& m) {
    m.position = 0;
    if (m.schedule == kShuffled) shuffleOrder(m.random, m.order, static_cast<size_t>(m.count));
}

// Null: no thread can go on.
inline Thread* pick(Machine& m) {
    if (m.runnable == 0) return nullptr;
    for (;;) {
        if (m.position == m.count) beginRound(m);
        Thread& thread = m.threads[m.order[m.position++]];
        if (thread.state <= kReady) return &thread;
    }
}

inline bool same(const Site& a, const Site& b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0) &&
           (a.function == b.function || strcmp(a.function, b.function) == 0);
}

inline std::string text(const Site& site) {
    return std::string(site.function) + " in " + site.file + ":" + std::to_string(site.line);
}

inline std::string blockText() {
    return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ") of " + std::to_string(blockDim.x) + " threads";
}

// Which threads wait where: "waiting at __syncthreads in kernel.cu:7: 0-31, 40; ended: 32-39".
inline std::string waitText(const Machine& m) {
    std::vector<std::pair<std::string, std::string>> groups;  // a state, its threads
    const auto state = [&](int i) {
        const Thread& thread = m.threads[i];
        return thread.state == kWaiting ? "waiting at " + text(thread.site) : thread.state == kEnded ? "ended" : "";
    };
    for (int first = 0, last; first < m.count; first = last) {
        const std::string name = state(first);
        for (last = first + 1; last < m.count && state(last) == name;) ++last;
        if (name.empty()) continue;
        auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& other) { return other.first == name; });
        if (group == groups.end()) group = groups.insert(group, {name, ""});
        std::string& list = group->second;
        if (list.size() > 100) {
            list.replace(100, std::string::npos, " ...");
            continue;
        }
        list += (list.empty() ? "" : ", ") + std::to_string(first);
        if (last - first > 1) list += "-" + std::to_string(last - 1);
    }
    std::string result;
    for (const auto& group : groups) result += (result.empty() ? "" : "; ") + group.first + ": " + group.second;
    return result;
}

}  // namespace cpu_grid
}  // namespace edgercnn
