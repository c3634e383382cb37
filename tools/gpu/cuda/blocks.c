/* Runs kernels that ptx.py turned into C: blocks one after the other, on as many processors as there are; the threads of a block as fibers, of which each
 * runs until it has to wait for others. x86-64.
 *
 * The order in which threads run is theirs to survive: SOFT_CUDA_ORDER says forward, backward or shuffled. Shared memory and what a lane has not said hold
 * NaN. A kernel that touches memory that is not the device's, or not aligned, or whose threads wait for each other at different places, ends the program
 * with one line that says which, where and what. */
#include "blocks.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { STACK = 128 << 10, READY = 0, DONE, MEETING, EXCHANGING };
static const uint32_t POISON = 0x7fc0deadu;

struct fiber {
    void *stack_pointer;
    int state, site;
    uint32_t mask, barrier, said[WORDS];
};
struct block {
    const struct kernel *kernel;
    const uint8_t *parameters;
    uint32_t lanes, parameter_bytes;
    void *scheduler;
    uint8_t *stacks;
    struct lane lane[MOST_LANES];
    struct fiber fiber[MOST_LANES];
    slot heard[MOST_LANES];
    uint8_t shared[256 << 10] __attribute__((aligned(256)));
};

__thread uint64_t known_from, known_to;

/* Saves the registers that a call keeps, and goes on with another stack. */
void change_stack(void **from, void *to);
__asm__(".globl change_stack\n.type change_stack, @function\nchange_stack:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static __thread struct lane *starting;
static void begin(void) {
    struct lane *lane = starting;
    struct block *block = lane->block;
    block->kernel->thread(lane, block->parameters);
    block->fiber[lane->index].state = DONE;
    change_stack(&block->fiber[lane->index].stack_pointer, block->scheduler);
    abort();
}

static void wait_as(struct lane *lane, int state) {
    struct fiber *fiber = &lane->block->fiber[lane->index];
    fiber->state = state;
    change_stack(&fiber->stack_pointer, lane->block->scheduler);
}

void refuse(struct lane *L, const char *why, uint64_t address) {
    fprintf(stderr, "soft CUDA: %s: block %u,%u,%u, thread %u,%u,%u: %s %#llx\n", L->block->kernel->name, L->ctaid[0], L->ctaid[1], L->ctaid[2], L->tid[0],
            L->tid[1], L->tid[2], why, (unsigned long long)address);
    abort();
}

static int within(uint64_t address, uint32_t bytes, const void *from, uint64_t length) {
    return address >= (uint64_t)from && address + bytes <= (uint64_t)from + length;
}

static __thread int on_device; /* whose memory this thread's block may touch */

int may_touch(struct lane *L, uint64_t address, uint32_t bytes) {
    struct block *block = L->block;
    if (device_memory(on_device, address, bytes, &known_from, &known_to)) return 1;
    if (within(address, bytes, L->shared, L->shared_bytes) || within(address, bytes, block->parameters, block->parameter_bytes)) return 1;
    uint8_t here;
    return within(address, bytes, &here, STACK); /* the thread's own variables lie above */
}

const slot *exchange(struct lane *L, uint32_t mask, const uint32_t *mine, int words, int site) {
    struct block *block = L->block;
    struct fiber *fiber = &block->fiber[L->index];
    if (!(mask >> (L->index & 31) & 1)) refuse(L, "a lane that its own mask leaves out:", mask);
    fiber->mask = mask, fiber->site = site;
    if (words) memcpy(fiber->said, mine, 4 * words);
    wait_as(L, EXCHANGING);
    return &block->heard[L->index & ~31];
}

void meet(struct lane *L, uint32_t barrier) {
    L->block->fiber[L->index].barrier = barrier;
    wait_as(L, MEETING);
}

uint32_t lanes_there(struct lane *L) {
    uint32_t there = 0, first = L->index & ~31;
    for (uint32_t i = 0; i < WARP && first + i < L->block->lanes; i++)
        if (L->block->fiber[first + i].state != DONE) there |= 1u << i;
    return there;
}

/* A number that differs from seed to seed, for a shuffled order. */
static uint32_t mixed(uint32_t x) { return x *= 0x9e3779b1u, x ^= x >> 15, x *= 0x85ebca77u, x ^ x >> 13; }

static uint32_t in_order(uint32_t i, uint32_t count, uint32_t seed) {
    switch (soft_order) {
    case BACKWARD: return count - 1 - i;
    case SHUFFLED: return count & (count - 1) ? (i + mixed(seed) % count) % count : i ^ (mixed(seed) & (count - 1));
    default: return i;
    }
}

/* Runs each lane of a warp that can go on, and lets those go on that have waited for nobody else; until all wait for other warps. */
static void run_warp(struct block *block, uint32_t first, uint32_t seed) {
    uint32_t count = block->lanes - first < WARP ? block->lanes - first : WARP;
    for (int again = 1; again; seed++) {
        again = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t lane = first + in_order(i, count, seed);
            if (block->fiber[lane].state == READY) {
                starting = &block->lane[lane];
                change_stack(&block->scheduler, block->fiber[lane].stack_pointer);
            }
        }
        for (uint32_t i = 0; i < WARP; i++)
            for (int j = 0; j < WORDS; j++) block->heard[first + i][j] = POISON;
        uint32_t there = lanes_there(&block->lane[first]);
        for (uint32_t i = 0; i < count; i++) {
            struct fiber *fiber = &block->fiber[first + i];
            if (fiber->state != EXCHANGING) continue;
            uint32_t members = fiber->mask & there, arrived = 0;
            for (uint32_t j = 0; j < count; j++) {
                struct fiber *other = &block->fiber[first + j];
                if (other->state == EXCHANGING && other->mask == fiber->mask && other->site == fiber->site) arrived |= 1u << j;
            }
            if (arrived != members) continue;
            for (uint32_t j = 0; j < count; j++)
                if (members >> j & 1) {
                    memcpy(block->heard[first + j], block->fiber[first + j].said, sizeof(slot));
                    block->fiber[first + j].state = READY;
                }
            again = 1;
        }
    }
}

static void run_block(struct block *block, const uint32_t *grid, const uint32_t *size, uint32_t shared_bytes, uint32_t number) {
    uint32_t lanes = block->lanes, at[3] = { number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1] };
    memset(block->shared, 0xff, shared_bytes);
    for (uint32_t i = 0; i < lanes; i++) {
        struct lane *lane = &block->lane[i];
        *lane = (struct lane){ .tid = { i % size[0], i / size[0] % size[1], i / size[0] / size[1] }, .index = i, .shared = block->shared,
                               .shared_bytes = shared_bytes, .block = block };
        for (int axis = 0; axis < 3; axis++) lane->ntid[axis] = size[axis], lane->ctaid[axis] = at[axis], lane->nctaid[axis] = grid[axis];
    }
    if (!block->kernel->meets) {
        for (uint32_t i = 0; i < lanes; i++) block->kernel->thread(&block->lane[in_order(i, lanes, number)], block->parameters);
        return;
    }
    for (uint32_t i = 0; i < lanes; i++) {
        /* A stack on which change_stack finds six registers and where to return to; a call finds it at 8 modulo 16. */
        void **top = (void **)(block->stacks + (size_t)(i + 1) * STACK) - 1;
        *--top = (void *)begin;
        block->fiber[i] = (struct fiber){ .stack_pointer = top - 6, .state = READY };
    }
    uint32_t warps = (lanes + WARP - 1) / WARP;
    for (uint32_t round = 0;; round++) {
        for (uint32_t i = 0; i < warps; i++) run_warp(block, WARP * in_order(i, warps, number + round), number + round + i);
        uint32_t done = 0, meeting = 0, barrier = ~0u;
        for (uint32_t i = 0; i < lanes; i++) {
            struct fiber *fiber = &block->fiber[i];
            done += fiber->state == DONE;
            if (fiber->state == MEETING && (barrier == ~0u || barrier == fiber->barrier)) meeting++, barrier = fiber->barrier;
        }
        if (done == lanes) return;
        if (done + meeting < lanes)
            for (uint32_t i = 0; i < lanes; i++)
                if (block->fiber[i].state == EXCHANGING) refuse(&block->lane[i], "waits for lanes that are elsewhere:", block->fiber[i].mask);
        for (uint32_t i = 0; i < lanes; i++)
            if (block->fiber[i].state == MEETING) block->fiber[i].state = READY;
    }
}

void run_kernel(const struct kernel *kernel, const uint8_t *parameters, uint32_t parameter_bytes, const uint32_t *grid, const uint32_t *size,
                uint32_t dynamic_shared, int device) {
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    uint32_t shared_bytes = kernel->static_shared + dynamic_shared;
#pragma omp parallel if (blocks > 1)
    {
        static __thread struct block *block;
        if (!block) {
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
            block = mmap(NULL, sizeof *block, PROT_READ | PROT_WRITE, flags, -1, 0);
            block->stacks = mmap(NULL, (size_t)MOST_LANES * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
        }
        known_from = known_to = 0, on_device = device;
        block->kernel = kernel, block->parameters = parameters, block->parameter_bytes = parameter_bytes;
        block->lanes = size[0] * size[1] * size[2];
#pragma omp for schedule(dynamic, 4)
        for (uint64_t i = 0; i < blocks; i++) run_block(block, grid, size, shared_bytes, (uint32_t)in_order((uint32_t)i, (uint32_t)blocks, 1));
    }
}
