/* A CUDA driver that computes nothing: kernels are taken and counted, memory is address space. What a program asks of a GPU, and how long the host takes
 * to ask, can be seen with it where there is no GPU. Results mean nothing: all that is read is 0, but a value that is read alone is 3 (ddpm asks each
 * device for 1 + 2).
 *
 * Claims to be an H100. DRY_CUDA_LOG names the file of what was asked: seconds, what, details. DRY_CUDA_US says how many microseconds a kernel takes
 * (none): whoever waits for an event then waits until the kernels before it would have run, one after the other. Only what CubeCL 0.11 calls is here. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_READY = 600 };
static const size_t TOTAL = 80ull << 30;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static FILE *out;
static long launches;
static double kernel_seconds, idle_at; /* when the device will have done all that it was asked for */
static size_t live, peak;
static int modules;

static void open_log(void) {
    if (!out) {
        const char *path = getenv("DRY_CUDA_LOG"), *us = getenv("DRY_CUDA_US");
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
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_DEVICE; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "no GPU (dry run)"), SUCCESS; }
int cuDeviceGetPCIBusId(char *id, int len, int device) { return snprintf(id, len, "0000:01:00.0"), SUCCESS; }
int cuDeviceGetUuid_v2(void *uuid, int device) { return memset(uuid, 1, 16), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = TOTAL, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;      /* threads per block; block x, y */
    case 4: *value = 64; break;                        /* block z */
    case 5: *value = 2147483647; break;                /* grid x */
    case 6: case 7: *value = 65535; break;             /* grid y, z */
    case 8: *value = 49152; break;                     /* shared memory per block */
    case 10: *value = 32; break;                       /* warp */
    case 16: *value = 132; break;                      /* multiprocessors */
    case 75: *value = 9; break;                        /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 232448; break;                   /* shared memory per block, opted in */
    case 115: *value = 1; break;                       /* memory pools */
    default: *value = 0;
    }
    return SUCCESS;
}
static int context;
int cuDevicePrimaryCtxRetain(void **ctx, int device) { return *ctx = &context, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxSetCurrent(void *ctx) { return SUCCESS; }
int cuCtxGetCurrent(void **ctx) { return *ctx = &context, SUCCESS; }
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
int cuEventDestroy_v2(void *event) { return free(event), SUCCESS; }
int cuEventRecord(struct event *event, void *stream) {
    LOCKED(event->launches = launches; event->at = idle_at);
    return SUCCESS;
}
int cuEventSynchronize(struct event *event) {
    LOCKED(LOG("wait"));
    return wait_until(event->at), SUCCESS;
}
int cuEventQuery(struct event *event) { return event->at <= seconds() ? SUCCESS : NOT_READY; }
int cuEventElapsedTime_v2(float *ms, struct event *from, struct event *to) {
    return *ms = 0.001f + 0.01f * (to->launches - from->launches), SUCCESS;
}
int cuEventElapsedTime(float *ms, struct event *from, struct event *to) { return cuEventElapsedTime_v2(ms, from, to); }

/* Memory: pages that nobody touches take none. */
static struct { uint64_t at; size_t bytes; } blocks[1 << 16];
static int held;
int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
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
        blocks[held++].bytes = whole;
        live += whole;
        peak = live > peak ? live : peak;
    }
    LOG("alloc %zu of %zu", bytes, live);
    pthread_mutex_unlock(&mutex);
    return error;
}
int cuMemFree_v2(uint64_t at) {
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
int cuMemAllocAsync(uint64_t *at, size_t bytes, void *stream) { return cuMemAlloc_v2(at, bytes); }
int cuMemFreeAsync(uint64_t at, void *stream) { return cuMemFree_v2(at); }
int cuMemGetInfo_v2(size_t *unused, size_t *total) { return *unused = TOTAL - live, *total = TOTAL, SUCCESS; }
int cuMemAllocHost_v2(void **at, size_t bytes) { return posix_memalign(at, 4096, bytes) ? OUT_OF_MEMORY : SUCCESS; }
int cuMemFreeHost(void *at) { return free(at), SUCCESS; }
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream) { return SUCCESS; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    LOCKED(LOG("upload %zu", bytes));
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    LOCKED(LOG("read %zu", bytes));
    memset(to, 0, bytes);
    if (bytes == sizeof(float)) *(float *)to = 3.0f;
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    LOCKED(LOG("copy %zu", bytes));
    return SUCCESS;
}
struct copy_2d {
    size_t src_x, src_y; int src_type; const void *src_host; uint64_t src; void *src_array; size_t src_pitch;
    size_t dst_x, dst_y; int dst_type; void *dst_host; uint64_t dst; void *dst_array; size_t dst_pitch;
    size_t width, height;
};
int cuMemcpy2DAsync_v2(const struct copy_2d *copy, void *stream) {
    int up = copy->src_type == 1;
    LOCKED(LOG("%s %zu", up ? "upload" : "read", copy->width * copy->height));
    for (size_t i = 0; !up && i < copy->height; i++) memset((char *)copy->dst_host + i * copy->dst_pitch, 0, copy->width);
    return SUCCESS;
}

/* Graphs: a stream that records takes launches into a list instead of running them. */
struct graph { int launches; };
static struct graph *recorded;
int cuStreamBeginCapture_v2(void *stream, int mode) { LOCKED(recorded = calloc(1, sizeof *recorded)); return SUCCESS; }
int cuStreamEndCapture(void *stream, struct graph **graph) { LOCKED(*graph = recorded; recorded = NULL); return SUCCESS; }
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
    return SUCCESS;
}
int cuGraphDestroy(struct graph *graph) { return free(graph), SUCCESS; }
int cuGraphExecDestroy(struct graph *exec) { return free(exec), SUCCESS; }

/* Kernels */
struct kernel { int module; char name[256]; };
int cuModuleLoadData(void **module, const void *ptx) {
    LOCKED(LOG("module %d", modules); *module = calloc(1, sizeof(int)); *(int *)*module = modules++);
    return SUCCESS;
}
int cuModuleUnload(void *module) { return free(module), SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    struct kernel *kernel = calloc(1, sizeof *kernel);
    kernel->module = *(int *)module;
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    return *function = kernel, SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuLaunchKernel(struct kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    double now = seconds();
    if (recorded) {
        LOCKED(recorded->launches++; LOG("record %s", kernel->name));
        return SUCCESS;
    }
    LOCKED(launches++; idle_at = (idle_at > now ? idle_at : now) + kernel_seconds; LOG("launch %s %ux%ux%u blocks of %ux%ux%u", kernel->name, gx, gy, gz, bx, by, bz));
    return SUCCESS;
}
int cuTensorMapEncodeTiled(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
int cuTensorMapEncodeIm2col(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
int cuTensorMapEncodeIm2colWide(void *map, ...) { return memset(map, 0, 128), SUCCESS; }
