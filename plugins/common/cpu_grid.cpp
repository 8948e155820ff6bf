// The scheduler behind cpu_grid.h: every thread of a block is a fiber.
//
// A thread that must wait picks the next one itself and switches to it straight away. A fiber whose thread ends goes on
// with the next thread that has not started, on the same stack: a kernel without barriers needs one stack and no
// switches. A fault and the end of a block switch back to the launching function.
#include "common/cpu_grid.h"

#include <memory>
#include <numeric>
#include <vector>

#include "common/cpu_grid_block.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace edgercnn {
namespace cpu_grid {

__thread unsigned char* shared_memory;

namespace {

constexpr size_t kMaxSharedBytes = 48 * 1024;  // what a GPU gives unasked; a kernel that wants more has to opt in
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xCD, kGuard = 0xA5;  // of dynamic shared memory, before and after it
constexpr int32_t kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

__thread Machine* machine;

Machine& ownMachine() {
    static thread_local const std::unique_ptr<Machine> owner(new Machine());
    return *owner;
}

// ------------------------------------------------------------------------------------------------ scheduling

void become(Machine& m, Thread& thread) {
    m.current = &thread;
    --m.runnable;
    thread.state = kRunning;
    threadIdx.x = static_cast<unsigned>(&thread - m.threads);
}

[[noreturn]] void fiberMain();

// The fiber to switch to for `next` to run; the launching function's where that is null.
Fiber& fiberOf(Machine& m, Thread* next) {
    if (!next) return m.fibers.caller;
    if (next->state == kNotStarted) next->fiber = m.fibers.take(fiberMain);
    become(m, *next);
    return *next->fiber;
}

// ------------------------------------------------------------------------------------------------ faults

// Back to the launching function; the block's fibers are abandoned. No destructor runs, so callers hold no objects.
[[noreturn]] void stop(Machine& m) {
    m.faulted = true;
    switchFibers(*m.current->fiber, m.fibers.caller, false);
    __builtin_unreachable();
}

[[noreturn]] void stopForDeadlock(Machine& m) {
    m.fault = "In " + blockText() + " no thread can go on: " + waitText(m) +
              ". A barrier needs every thread that has not ended, a warp function all 32 lanes.";
    stop(m);
}

[[noreturn]] void stopForMeeting(Machine& m, Thread& self, Site site) {
    self.state = kWaiting;
    self.site = site;
    m.fault = "In " + blockText() + " threads that should meet in one line of the kernel are in different ones: " +
              waitText(m) + ".";
    stop(m);
}

// ------------------------------------------------------------------------------------------------ waiting

void wait(Machine& m, Thread& self, Site site, State state) {
    self.state = state;
    self.site = site;
    Thread* next = pick(m);
    if (!next) stopForDeadlock(m);
    if (next == &self) {
        become(m, self);
    } else {
        switchFibers(*self.fiber, fiberOf(m, next), false);
    }
}

void release(Machine& m, Thread& thread) {
    thread.state = kReady;
    ++m.runnable;
}

void releaseBarrier(Machine& m) {
    m.barrier.votes[++m.barrier.turn & 1] = Vote{0, 0};
    for (int i = 0; i < m.count; ++i) {
        if (m.threads[i].state != kEnded) release(m, m.threads[i]);
    }
    beginRound(m);
}

// The running thread has ended: what its fiber runs next, or null if it is the block's last.
Thread* afterEnd(Machine& m) {
    m.current->state = kEnded;
    --m.live;
    const Vote& vote = m.barrier.votes[m.barrier.turn & 1];
    if (vote.arrived > 0 && vote.arrived == m.live) releaseBarrier(m);
    Thread* next = pick(m);
    if (!next && m.live > 0) stopForDeadlock(m);
    return next;
}

// Never returns: what AddressSanitizer puts around a function's variables would stay on the stack for its next thread.
EDGERCNN_NOT_SANITIZED void fiberMain() {
    Machine& m = *machine;
    Fiber& self = *m.current->fiber;
    arrive(self);
    for (;;) {
        m.thread_body(m.context);
        Thread* next = afterEnd(m);
        if (next && next->state == kNotStarted) {
            next->fiber = &self;
            become(m, *next);
        } else {
            m.fibers.give(&self);
            switchFibers(self, fiberOf(m, next), true);
        }
    }
}

// ------------------------------------------------------------------------------------------------ running

// True if the bytes at `guard` are as they were set.
bool intact(const unsigned char* guard) {
    return guard[0] == kGuard && memcmp(guard, guard + 1, kGuardBytes - 1) == 0;
}

bool runBlock(Machine& m, size_t shared_bytes) {
    m.live = m.runnable = m.count;
    for (int i = 0; i < m.count; ++i) m.threads[i].state = kNotStarted;
    beginRound(m);
    unsigned char *before = shared_memory - kGuardBytes, *after = shared_memory + shared_bytes;
    memset(before, kGuard, kGuardBytes);
    memset(shared_memory, kPoison, shared_bytes);
    memset(after, kGuard, kGuardBytes);
    ASAN_POISON_MEMORY_REGION(before, kGuardBytes);
    ASAN_POISON_MEMORY_REGION(after, kGuardBytes);
    switchFibers(m.fibers.caller, fiberOf(m, pick(m)), false);
    ASAN_UNPOISON_MEMORY_REGION(before, kGuardBytes);
    ASAN_UNPOISON_MEMORY_REGION(after, kGuardBytes);
    if (m.faulted) return false;
    if (intact(before) && intact(after)) return true;
    const unsigned char* guard = intact(before) ? after : before;
    const auto hit = std::find_if(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != kGuard; });
    m.fault = "In " + blockText() + " byte " + std::to_string(hit - shared_memory) + " of dynamic shared memory was " +
              "written; the launch asked for " + std::to_string(shared_bytes) + ".";
    return false;
}

bool begin(Machine& m, int threads, size_t shared_bytes) {
    if (threads > kMaxThreads || shared_bytes > kMaxSharedBytes) {
        m.fault = "The launch asked for blocks of " + std::to_string(threads) + " threads and " +
                  std::to_string(shared_bytes) + " bytes of dynamic shared memory; a GPU has at most " +
                  std::to_string(kMaxThreads) + " and " + std::to_string(kMaxSharedBytes) + ".";
        return false;
    }
    if (!m.fibers.allocate(kMaxThreads, kGuardBytes + kMaxSharedBytes + kGuardBytes)) {
        m.fault = "There is no memory for the stacks of " + std::to_string(kMaxThreads) + " threads.";
        return false;
    }
    machine = &m;
    shared_memory = m.fibers.extra + kGuardBytes;
    m.faulted = false;
    m.count = threads;
    for (int i = 0; i < threads; ++i) m.order[i] = m.schedule == kReverse ? threads - 1 - i : i;
    for (Warp& warp : m.warps) warp.slots[0].arrived = warp.slots[1].arrived = 0;
    m.barrier.votes[0] = m.barrier.votes[1] = Vote{0, 0};
    return true;
}

}  // namespace

void fault(Site site, const char* what) {
    machine->fault = "In " + blockText() + " thread " + std::to_string(threadIdx.x) + " called " + text(site) + what;
    stop(*machine);
}

Vote barrier(Site site, bool predicate) {
    Machine& m = *machine;
    Thread& self = *m.current;
    Vote& vote = m.barrier.votes[m.barrier.turn & 1];
    if (vote.arrived == 0) m.barrier.site = site;
    if (!same(site, m.barrier.site)) stopForMeeting(m, self, site);
    vote.count += predicate;
    if (++vote.arrived < m.live) {
        wait(m, self, site, kWaiting);
    } else {
        releaseBarrier(m);
        wait(m, self, site, kReady);
    }
    return vote;
}

const Exchange& exchange(Site site, unsigned mask, uint64_t value) {
    if (mask != 0xffffffffu) fault(site, " with a mask of less than all lanes; only 0xffffffff is supported.");
    Machine& m = *machine;
    Thread& self = *m.current;
    const int id = static_cast<int>(&self - m.threads), lane = id % kLanes, first = id - lane;
    Warp& warp = m.warps[first / kLanes];
    Slot& slot = warp.slots[warp.turn & 1];
    if (slot.arrived == 0) {
        slot.site = site;
        slot.ballot = 0;
    }
    if (!same(site, slot.site)) stopForMeeting(m, self, site);
    slot.values[lane] = value;
    slot.ballot |= unsigned{value != 0} << lane;
    if (++slot.arrived < kLanes) {
        wait(m, self, site, kWaiting);
        return slot;
    }
    slot.arrived = 0;
    ++warp.turn;
    for (int i = first; i < first + kLanes; ++i) release(m, m.threads[i]);
    // Shuffled warps take turns; else the warp goes on at once, while its stacks are in the cache.
    if (m.schedule != kShuffled) m.position = m.schedule == kForward ? first : m.count - first - kLanes;
    wait(m, self, site, kReady);
    return slot;
}

int32_t run(void (*thread_body)(void*), void* context, dim3 grid, int threads, size_t shared_bytes) {
    if (grid.x - 1 >= 0x7fffffffu || grid.y - 1 >= 65535 || grid.z - 1 >= 65535 || threads < 1) {
        return kInvalidConfiguration;
    }
    Machine& m = ownMachine();
    if (!begin(m, threads, shared_bytes)) return kKernelFault;
    m.thread_body = thread_body;
    m.context = context;
    gridDim = grid;
    blockDim = dim3(static_cast<unsigned>(threads));
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    std::vector<uint64_t> shuffled(m.schedule == kShuffled ? blocks : 0);
    std::iota(shuffled.begin(), shuffled.end(), uint64_t{0});
    shuffleOrder(m.random, shuffled.data(), shuffled.size());
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t block = m.schedule == kForward ? i : m.schedule == kReverse ? blocks - 1 - i : shuffled[i];
        blockIdx.x = static_cast<unsigned>(block % grid.x);
        blockIdx.y = static_cast<unsigned>(block / grid.x % grid.y);
        blockIdx.z = static_cast<unsigned>(block / grid.x / grid.y);
        if (!runBlock(m, shared_bytes)) {
            m.fibers.freeAll();
            return kKernelFault;
        }
    }
    return kSuccess;
}

}  // namespace cpu_grid
}  // namespace edgercnn

int32_t edgercnn_cpu_set_schedule(int32_t schedule, uint64_t seed) {
    if (schedule < edgercnn::cpu_grid::kForward || schedule > edgercnn::cpu_grid::kShuffled) {
        return edgercnn::kInvalidArgument;
    }
    edgercnn::cpu_grid::Machine& machine = edgercnn::cpu_grid::ownMachine();
    machine.schedule = schedule;
    machine.random = seed;
    return edgercnn::kSuccess;
}

const char* edgercnn_cpu_fault() { return edgercnn::cpu_grid::ownMachine().fault.c_str(); }
