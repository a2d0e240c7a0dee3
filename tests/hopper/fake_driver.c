/* A CUDA driver that launches nothing and remembers everything: lets cuda-bindings, and the code
 * above it, run without a GPU. Built by test_hopper_launcher.py as libcuda.so.1.
 *
 * Answers: every call succeeds unless it is named in fake_fail(name, code, times). Launches are
 * kept in a log that the tests read through fake_launch(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    unsigned gridX, gridY, gridZ, blockX, blockY, blockZ, sharedMemBytes;
    void *stream;
    struct { int id; char pad[4]; char value[64]; } *attrs;
    unsigned numAttrs;
} LaunchConfig;

#define MAX_PARAMS 8
#define PARAM_BYTES 512
#define MAX_LAUNCHES 4096

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream, *function;
    int attr_count, attr_id, attr_value;
    char params[MAX_PARAMS][PARAM_BYTES];
} Launch;

static Launch launches[MAX_LAUNCHES];
static int launch_count;
static int param_sizes[MAX_PARAMS];
static struct { char name[64]; int code, times; } failing;
static int driver_version = 13000;
static int calls_of_encode, calls_of_load;
static char kernel_names[64][128];
static int kernel_count;

int fake_reset(void) {
    launch_count = calls_of_encode = calls_of_load = 0;
    failing.times = 0;
    driver_version = 13000;
    memset(param_sizes, 0, sizeof param_sizes);
    return 0;
}
int fake_fail(const char *name, int code, int times) {
    snprintf(failing.name, sizeof failing.name, "%s", name);
    failing.code = code;
    failing.times = times;
    return 0;
}
int fake_version(int version) { return driver_version = version; }
int fake_launches(void) { return launch_count; }
int fake_encodes(void) { return calls_of_encode; }
int fake_loads(void) { return calls_of_load; }
int fake_param_size(int index, int bytes) { return param_sizes[index] = bytes; }
Launch *fake_launch(int i) { return &launches[i % MAX_LAUNCHES]; }
const char *fake_kernel_name(void *f) { return kernel_names[(uintptr_t)f - 1]; }

static int fails(const char *name) {
    if (failing.times > 0 && !strcmp(failing.name, name)) {
        failing.times--;
        return failing.code;
    }
    return 0;
}

int cuInit(unsigned flags) { return fails("cuInit"); }
int cuDriverGetVersion(int *version) { *version = driver_version; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(uintptr_t)(0xC0 + device);
    return 0;
}
int cuCtxSetCurrent(void *context) { return fails("cuCtxSetCurrent"); }
int cuModuleLoadData(void **module, const void *image) {
    calls_of_load++;
    *module = (void *)0xA0;
    return fails("cuModuleLoadData");
}
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    int error = fails("cuModuleGetFunction");
    if (error) return error;
    for (int i = 0; i < kernel_count; i++)
        if (!strcmp(kernel_names[i], name)) {
            *function = (void *)(uintptr_t)(i + 1);
            return 0;
        }
    snprintf(kernel_names[kernel_count], sizeof kernel_names[0], "%s", name);
    *function = (void *)(uintptr_t)(++kernel_count);
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    return fails("cuFuncSetAttribute");
}
int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address,
                           const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                           const uint32_t *element_strides, int interleave, int swizzle,
                           int promotion, int fill) {
    calls_of_encode++;
    int error = fails("cuTensorMapEncodeTiled");
    if (error) return error;
    if ((uintptr_t)map % 64) return 1;
    memset(map, 0, 128);
    /* readable by the tests: address, type | rank | swizzle, then dims, strides, box */
    map[0] = (uint64_t)(uintptr_t)address;
    map[1] = (uint64_t)type | (uint64_t)rank << 8 | (uint64_t)swizzle << 16;
    for (unsigned i = 0; i < rank; i++) map[2 + i] = dims[i];
    for (unsigned i = 0; i + 1 < rank; i++) map[7 + i] = strides[i];
    for (unsigned i = 0; i < rank; i++) ((uint32_t *)(map + 11))[i] = box[i];
    return 0;
}
int cuLaunchKernelEx(const LaunchConfig *config, void *function, void **params, void **extra) {
    int error = fails("cuLaunchKernelEx");
    if (error) return error;
    Launch *l = &launches[launch_count++ % MAX_LAUNCHES];
    memset(l, 0, sizeof *l);
    memcpy(l->grid, &config->gridX, sizeof l->grid);
    memcpy(l->block, &config->blockX, sizeof l->block);
    l->shared = config->sharedMemBytes;
    l->stream = config->stream;
    l->function = function;
    l->attr_count = (int)config->numAttrs;
    if (config->numAttrs) {
        l->attr_id = config->attrs[0].id;
        memcpy(&l->attr_value, config->attrs[0].value, sizeof(int));
    }
    for (int i = 0; i < MAX_PARAMS && param_sizes[i]; i++)
        memcpy(l->params[i], params[i], (size_t)param_sizes[i]);
    return 0;
}
int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_FAKE"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "a failure the test asked for"; return 0; }

static int anything(void) { return 0; }

/* cuda-bindings asks for every function it knows by name. */
int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *found) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    Dl_info info, own;
    dladdr((void *)cuGetProcAddress_v2, &own);
    if (*function && (!dladdr(*function, &info) || strcmp(info.dli_fname, own.dli_fname)))
        *function = NULL;
    void *self = dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (self && !*function) *function = dlsym(self, symbol);
    if (!*function) *function = (void *)anything;
    if (found) *found = 0;
    return 0;
}
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, 0);
}
