/* A CUDA driver for where there is no GPU, of two kinds.
 *
 * The dry one (tools/gpu/dry) computes nothing: kernels are taken and counted, memory is address space. What a program asks of a GPU, and how long the
 * host takes to ask, can be seen with it. Results mean nothing: all that is read is 0, but a value that is read alone is 3 (ddpm asks each device for
 * e^0 + e^(ln 2)). CUDA_LOG names the file of what was asked: seconds, what, details. CUDA_US says how many microseconds a kernel takes (none): whoever waits
 * for an event then waits until the kernels before it would have run, one after the other.
 *
 * The soft one (tools/gpu/soft, compiled with COMPUTES) runs each launch before it returns, on the processor: see blocks.c.
 *
 * Both claim to be an H100, or what CUDA_CAPABILITY says, and as many of them as CUDA_DEVICES says. Only what CubeCL 0.11 calls is here. */
#ifdef COMPUTES
#define _GNU_SOURCE
#include "blocks.h"
#include <dlfcn.h>
#endif
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_READY = 600 };
#ifdef COMPUTES
static const char *const NAME = "no GPU (soft)";
static const size_t TOTAL = 16ull << 30;
#else
static const char *const NAME = "no GPU (dry run)";
static const size_t TOTAL = 80ull << 30;
#endif

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static FILE *out;
static long launches;
static double kernel_seconds, idle_at; /* when the device will have done all that it was asked for */
static size_t live, peak;

static void open_log(void) {
    if (!out) {
        const char *path = getenv("CUDA_LOG"), *us = getenv("CUDA_US");
        out = fopen(path ? path : "/dev/null", "w");
        if (!out) abort();
        kernel_seconds = us ? atof(us) * 1e-6 : 0;
    }
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void wait_until(double then) {
    double left = then - seconds();
    if (left > 0) nanosleep(&(struct timespec){(time_t)left, (long)((left - (time_t)left) * 1e9)}, NULL);
}

#define LOG(...)                                                          \
    do {                                                                  \
        struct timespec now;                                              \
        clock_gettime(CLOCK_MONOTONIC, &now);                             \
        open_log();                                                       \
        fprintf(out, "%ld.%09ld ", (long)now.tv_sec, now.tv_nsec);        \
        fprintf(out, __VA_ARGS__);                                        \
        fputc('\n', out);                                                 \
    } while (0)
#define LOCKED(...)                                                       \
    do {                                                                  \
        pthread_mutex_lock(&mutex);                                       \
        __VA_ARGS__;                                                      \
        pthread_mutex_unlock(&mutex);                                     \
    } while (0)

__attribute__((destructor)) static void finish(void) {
    if (out) {
        LOG("end %zu bytes at most, %ld launches", peak, launches);
        fclose(out);
    }
}

/* Devices */
int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
enum { MOST_DEVICES = 8 };
static int devices(void) {
    const char *claimed = getenv("CUDA_DEVICES");
    int count = claimed ? atoi(claimed) : 1;
    return count > MOST_DEVICES ? MOST_DEVICES : count;
}
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal < devices() ? SUCCESS : INVALID_DEVICE; }
int cuDeviceGetCount(int *count) { return *count = devices(), SUCCESS; }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "%s", NAME), SUCCESS; }
int cuDeviceGetPCIBusId(char *id, int len, int device) { return snprintf(id, len, "0000:0%d:00.0", device + 1), SUCCESS; }
int cuDeviceGetUuid_v2(void *uuid, int device) { return memset(uuid, device + 1, 16), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = TOTAL, SUCCESS; }
static int capability(void) {
    const char *claimed = getenv("CUDA_CAPABILITY");
    return claimed ? atoi(claimed) : 90;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;      /* threads per block; block x, y */
    case 4: *value = 64; break;                        /* block z */
    case 5: *value = 2147483647; break;                /* grid x */
    case 6: case 7: *value = 65535; break;             /* grid y, z */
    case 8: *value = 49152; break;                     /* shared memory per block */
    case 10: *value = 32; break;                       /* warp */
    case 16: *value = 132; break;                      /* multiprocessors */
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 97: *value = 232448; break;                   /* shared memory per block, opted in */
    case 115: *value = 1; break;                       /* memory pools */
    default: *value = 0;
    }
    return SUCCESS;
}
static char contexts[MOST_DEVICES];
static __thread int current; /* the device of this thread */
int cuDevicePrimaryCtxRetain(void **ctx, int device) { return *ctx = &contexts[device], SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxSetCurrent(void *ctx) { return current = ctx ? (int)((char *)ctx - contexts) : 0, SUCCESS; }
int cuCtxGetCurrent(void **ctx) { return *ctx = &contexts[current], SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }
int cuGetErrorName(int error, const char **name) { return *name = "CUDA_ERROR", SUCCESS; }
int cuGetErrorString(int error, const char **text) { return *text = "an error", SUCCESS; }

/* Streams and events: an event knows how many launches there were before it, which by its own clock take 10 microseconds each, and when they will
 * have run. */
struct event { long launches; double at; };
int cuStreamCreate(void **stream, unsigned flags) { return *stream = malloc(1), SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return free(stream), SUCCESS; }
int cuStreamSynchronize(void *stream) {
    double then;
    LOCKED(LOG("wait"); then = idle_at);
    return wait_until(then), SUCCESS;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return *event = calloc(1, sizeof(struct event)), SUCCESS; }
/* CubeCL records in CUDA's global mode, in which no thread may call what could wait for a stream that records. Streams are recorded one by one. */
static struct { void *stream; struct graph *graph; } recordings[16];
static int recording_streams;
static struct graph *recorded_of(void *stream) {
    for (int i = 0; i < recording_streams; i++)
        if (recordings[i].stream == stream) return recordings[i].graph;
    return NULL;
}
static void refused_while_recording(const char *call) {
    if (recording_streams) fprintf(stderr, "soft CUDA: %s while a stream records in the global mode, which CUDA refuses\n", call), abort();
}
int cuEventDestroy_v2(void *event) { return free(event), SUCCESS; }
int cuEventRecord(struct event *event, void *stream) {
    LOCKED(event->launches = launches; event->at = idle_at);
    return SUCCESS;
}
int cuEventSynchronize(struct event *event) {
    LOCKED(LOG("wait"));
    return wait_until(event->at), SUCCESS;
}
int cuEventQuery(struct event *event) { refused_while_recording("cuEventQuery"); return event->at <= seconds() ? SUCCESS : NOT_READY; }
int cuEventElapsedTime_v2(float *ms, struct event *from, struct event *to) {
    /* CUDA_TUNED draws how long a launch takes, so that a tuner finds others the fastest. */
    const char *tuned = getenv("CUDA_TUNED");
    uint32_t drawn = tuned ? (uint32_t)(atoi(tuned) * 0x9e3779b1u + to->launches * 0x85ebca77u) : 0;
    drawn = (drawn ^ drawn >> 15) * 0x2c1b3c6du;
    return *ms = 0.001f + 0.01f * (to->launches - from->launches) * (1 + (drawn >> 8) * 0x1p-24f), SUCCESS;
}
int cuEventElapsedTime(float *ms, struct event *from, struct event *to) { return cuEventElapsedTime_v2(ms, from, to); }

/* Memory: pages that nobody touches take none. */
static struct { uint64_t at; size_t bytes; int device; } blocks[1 << 16];
static int held;
static int take(uint64_t *at, size_t bytes) {
    size_t whole = (bytes + 4095) & ~(size_t)4095;
    int error = SUCCESS;
    pthread_mutex_lock(&mutex);
    void *block = MAP_FAILED;
    if (live + whole <= TOTAL && held < 1 << 16)
        block = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
        error = OUT_OF_MEMORY;
    } else {
        *at = (uint64_t)block;
        blocks[held].at = *at;
        blocks[held].device = current;
        blocks[held++].bytes = whole;
        live += whole;
        peak = live > peak ? live : peak;
    }
    LOG("alloc %zu of %zu", bytes, live);
    pthread_mutex_unlock(&mutex);
    return error;
}
static int give_back(uint64_t at) {
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < held; i++)
        if (blocks[i].at == at) {
            munmap((void *)at, blocks[i].bytes);
            live -= blocks[i].bytes;
            blocks[i] = blocks[--held];
            break;
        }
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}
int cuMemAlloc_v2(uint64_t *at, size_t bytes) { refused_while_recording("cuMemAlloc"); return take(at, bytes); }
int cuMemFree_v2(uint64_t at) { refused_while_recording("cuMemFree"); return give_back(at); }
int cuMemAllocAsync(uint64_t *at, size_t bytes, void *stream) { return take(at, bytes); }
int cuMemFreeAsync(uint64_t at, void *stream) { return give_back(at); }
int cuMemGetInfo_v2(size_t *unused, size_t *total) { return *unused = TOTAL - live, *total = TOTAL, SUCCESS; }
int cuMemAllocHost_v2(void **at, size_t bytes) { refused_while_recording("cuMemAllocHost"); return posix_memalign(at, 4096, bytes) ? OUT_OF_MEMORY : SUCCESS; }
int cuMemFreeHost(void *at) { refused_while_recording("cuMemFreeHost"); return free(at), SUCCESS; }
/* What a stream is asked to do: done at once, or kept by a stream that records. */
enum { COPY, SET, LAUNCH };
struct kernel_here {
    char name[256];
#ifdef COMPUTES
    const struct kernel *soft;
#endif
};
struct task {
    int what, value;
    void *to;
    const void *from;
    size_t bytes;
    const struct kernel_here *kernel;
    unsigned grid[3], block[3], shared;
    unsigned char *arguments;
};
struct graph {
    struct task *tasks;
    int count, launches;
};

/* CubeCL asks how fast a device is at most, and reads no result. A tuner is content with what comes near that, so this one is slow: it is content with the
 * first kernel that it tries. */
static int measures_peak(const struct kernel_here *kernel) { return strstr(kernel->name, "_throughput_") != NULL; }
#ifdef COMPUTES
int device_memory(int device, uint64_t address, uint32_t bytes, uint64_t *from, uint64_t *to) {
    int found = 0;
    LOCKED(for (int i = 0; i < held && !found; i++)
               if (blocks[i].device == device && address >= blocks[i].at && address + bytes <= blocks[i].at + blocks[i].bytes)
                   found = 1, *from = blocks[i].at, *to = blocks[i].at + blocks[i].bytes);
    return found;
}
static uint32_t argument_bytes(const struct kernel *kernel) {
    return kernel->parameters ? kernel->parameter[kernel->parameters - 1].at + kernel->parameter[kernel->parameters - 1].bytes : 0;
}
static void run(const struct task *task) {
    if (task->what == LAUNCH && measures_peak(task->kernel)) return;
    if (task->what == COPY) memmove(task->to, task->from, task->bytes);
    else if (task->what == SET) memset(task->to, task->value, task->bytes);
    else run_kernel(task->kernel->soft, task->arguments, argument_bytes(task->kernel->soft), task->grid, task->block, task->shared, current);
}
static unsigned char *copied_arguments(const struct kernel_here *kernel, void **arguments) {
    unsigned char *copy = aligned_alloc(64, (argument_bytes(kernel->soft) + 64) & ~63u);
    for (int i = 0; i < kernel->soft->parameters; i++) memcpy(copy + kernel->soft->parameter[i].at, arguments[i], kernel->soft->parameter[i].bytes);
    return copy;
}
#else
static void run(const struct task *task) { }
static unsigned char *copied_arguments(const struct kernel_here *kernel, void **arguments) { return NULL; }
#endif

static int ask(struct task task, void *stream) {
    double now = seconds();
    int launch = task.what == LAUNCH;
    pthread_mutex_lock(&mutex);
    struct graph *graph = recorded_of(stream);
    if (graph) {
        graph->tasks = realloc(graph->tasks, (graph->count + 1) * sizeof task);
        graph->tasks[graph->count++] = task;
        graph->launches += launch;
    } else if (launch) {
        launches += measures_peak(task.kernel) && !getenv("CUDA_TUNED") ? 1000000 : 1;
        idle_at = (idle_at > now ? idle_at : now) + kernel_seconds;
    }
    if (launch && graph) LOG("record %s", task.kernel->name);
    else if (launch)
        LOG("launch %s %ux%ux%u blocks of %ux%ux%u", task.kernel->name, task.grid[0], task.grid[1], task.grid[2], task.block[0], task.block[1], task.block[2]);
    pthread_mutex_unlock(&mutex);
    if (!graph) {
        run(&task);
        free(task.arguments);
    }
    return SUCCESS;
}

int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream) {
    return ask((struct task){ .what = SET, .to = (void *)at, .value = value, .bytes = bytes }, stream);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    LOCKED(LOG("upload %zu", bytes));
    return ask((struct task){ .what = COPY, .to = (void *)to, .from = from, .bytes = bytes }, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    LOCKED(LOG("read %zu", bytes));
#ifndef COMPUTES
    memset(to, 0, bytes);
    if (bytes == sizeof(float)) *(float *)to = 3.0f;
#endif
    return ask((struct task){ .what = COPY, .to = to, .from = (const void *)from, .bytes = bytes }, stream);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    LOCKED(LOG("copy %zu", bytes));
    return ask((struct task){ .what = COPY, .to = (void *)to, .from = (const void *)from, .bytes = bytes }, stream);
}
struct copy_2d {
    size_t src_x, src_y; int src_type; const void *src_host; uint64_t src; void *src_array; size_t src_pitch;
    size_t dst_x, dst_y; int dst_type; void *dst_host; uint64_t dst; void *dst_array; size_t dst_pitch;
    size_t width, height;
};
int cuMemcpy2DAsync_v2(const struct copy_2d *copy, void *stream) {
    const char *from = copy->src_type == 1 ? copy->src_host : (const char *)copy->src;
    char *to = copy->dst_type == 1 ? copy->dst_host : (char *)copy->dst;
    LOCKED(LOG("%s %zu", copy->src_type == 1 ? "upload" : "read", copy->width * copy->height));
    for (size_t i = 0; i < copy->height; i++) {
#ifndef COMPUTES
        if (copy->dst_type == 1) memset(to + i * copy->dst_pitch, 0, copy->width);
#endif
        ask((struct task){ .what = COPY, .to = to + i * copy->dst_pitch, .from = from + i * copy->src_pitch, .bytes = copy->width }, stream);
    }
    return SUCCESS;
}

/* Graphs: a stream that records keeps what it is asked for. */
int cuStreamBeginCapture_v2(void *stream, int mode) {
    LOCKED(recordings[recording_streams].stream = stream; recordings[recording_streams++].graph = calloc(1, sizeof(struct graph)));
    return SUCCESS;
}
int cuStreamEndCapture(void *stream, struct graph **graph) {
    LOCKED(*graph = recorded_of(stream);
           for (int i = 0; i < recording_streams; i++) if (recordings[i].stream == stream) recordings[i] = recordings[--recording_streams]);
    return SUCCESS;
}
int cuGraphGetNodes(struct graph *graph, void **nodes, size_t *count) { return *count = 0, SUCCESS; }
int cuGraphInstantiateWithFlags(struct graph **exec, struct graph *graph, unsigned long long flags) {
    *exec = malloc(sizeof *graph);
    **exec = *graph;
    return SUCCESS;
}
int cuGraphUpload(struct graph *exec, void *stream) { return SUCCESS; }
int cuGraphLaunch(struct graph *exec, void *stream) {
    double now = seconds();
    LOCKED(launches += exec->launches; idle_at = (idle_at > now ? idle_at : now) + exec->launches * kernel_seconds;
           LOG("graph %d launches", exec->launches));
    for (int i = 0; i < exec->count; i++) run(&exec->tasks[i]);
    return SUCCESS;
}
int cuGraphDestroy(struct graph *graph) { return free(graph), SUCCESS; } /* what it was asked for is the executable one's */
int cuGraphExecDestroy(struct graph *exec) {
    for (int i = 0; i < exec->count; i++) free(exec->tasks[i].arguments);
    free(exec->tasks);
    return free(exec), SUCCESS;
}

/* Kernels */
#ifdef COMPUTES
int soft_order;
static const char *asked(const char *variable) {
    const char *value = getenv(variable);
    if (!value) fprintf(stderr, "soft CUDA: %s is not set: start with tools/gpu/soft\n", variable), abort();
    return value;
}
/* ptx.py makes a library of PTX, which is kept under a hash of it. */
static void *library_of(const char *ptx) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *at = ptx; *at; at++) hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    char source[1100], library[1100], command[4096];
    snprintf(source, sizeof source, "%.1000s/%016llx.ptx", asked("SOFT_CUDA_CACHE"), (unsigned long long)hash);
    snprintf(library, sizeof library, "%.1000s/%016llx.so", asked("SOFT_CUDA_CACHE"), (unsigned long long)hash);
    FILE *there = fopen(library, "r");
    if (there) {
        fclose(there);
    } else {
        FILE *file = fopen(source, "w");
        if (!file || fputs(ptx, file) < 0 || fclose(file)) perror(source), abort();
        snprintf(command, sizeof command, "python3 '%s/ptx.py' '%s' '%s'", asked("SOFT_CUDA_TOOLS"), source, library);
        if (system(command)) fprintf(stderr, "soft CUDA: a kernel could not be translated\n"), abort();
    }
    Dl_info self;
    if (dladdr(&soft_order, &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL); /* kernels call blocks.c */
    void *opened = dlopen(library, RTLD_NOW);
    if (!opened) fprintf(stderr, "soft CUDA: %s\n", dlerror()), abort();
    return opened;
}
int cuModuleLoadData(void **module, const void *ptx) {
    const char *order = getenv("SOFT_CUDA_ORDER");
    soft_order = order && !strcmp(order, "backward") ? BACKWARD : order && !strcmp(order, "shuffled") ? SHUFFLED : FORWARD;
    return *module = library_of(ptx), SUCCESS;
}
int cuModuleUnload(void *module) { return SUCCESS; }
#else
static int modules;
int cuModuleLoadData(void **module, const void *ptx) {
    LOCKED(LOG("module %d", modules++); *module = malloc(1));
    return SUCCESS;
}
int cuModuleUnload(void *module) { return free(module), SUCCESS; }
#endif
int cuModuleGetFunction(struct kernel_here **function, void *module, const char *name) {
    struct kernel_here *kernel = *function = calloc(1, sizeof *kernel);
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
#ifdef COMPUTES
    char symbol[300];
    snprintf(symbol, sizeof symbol, "soft_%s", name);
    kernel->soft = dlsym(module, symbol);
    if (!kernel->soft) fprintf(stderr, "soft CUDA: %s\n", dlerror()), abort();
#endif
    return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuLaunchKernel(struct kernel_here *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    return ask((struct task){ .what = LAUNCH, .kernel = kernel, .grid = { gx, gy, gz }, .block = { bx, by, bz }, .shared = shared,
                              .arguments = copied_arguments(kernel, arguments) }, stream);
}
int cuTensorMapEncodeTiled(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
int cuTensorMapEncodeIm2col(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
int cuTensorMapEncodeIm2colWide(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
