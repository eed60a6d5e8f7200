// Two GPUs with fixed readings behind NVML's own names: the real pynvml loads this as libnvidia-ml.so.1.
// Signatures: nvml.h of CUDA 13. With -DWITHOUT_POWER a driver that lacks a function and refuses another. Files in the directory of
// $FAKE_NVML change it while it runs: `lost-N` (GPU N is), `hung` (no reading comes), `gone` (the driver is), `mig` (GPU 0 is cut in two),
// `hot` (GPU 1 is held back by heat), `flipped` (GPU 1 had memory errors).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

static int is(const char *file) {
    char path[4096];
    const char *directory = getenv("FAKE_NVML");
    if (directory == NULL) return 0;
    snprintf(path, sizeof path, "%s/%s", directory, file);
    return access(path, F_OK) == 0;
}
// Handles: 1 and 2 are GPUs, 11 and 13 the instances of the first.
static long index_of(void *device) { return (long)device > 10 ? (long)device - 11 : (long)device - 1; }
static int is_instance(void *device) { return (long)device > 10; }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
nvmlReturn_t nvmlInit_v2(void) { return SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return is("gone") ? DRIVER_NOT_LOADED : SUCCESS; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    char lost[16];
    snprintf(lost, sizeof lost, "lost-%u", index);
    *device = (void *)(long)(index + 1);
    while (is("hung")) usleep(10000);
    return is(lost) ? GPU_IS_LOST : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(void *device, char *name, unsigned int length) { snprintf(name, length, is_instance(device) ? "NVIDIA H200 MIG 1g.18gb" : "NVIDIA H200"); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) { snprintf(uuid, length, is_instance(device) ? "MIG-%ld" : "GPU-%ld", index_of(device)); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetUtilizationRates(void *device, nvmlUtilization_t *rates) { rates->gpu = 25 * (index_of(device) + 1); rates->memory = 5; return index_of(device) == 0 && is("mig") ? NOT_SUPPORTED : SUCCESS; }
// The first version of the question counts what is reserved as used.
nvmlReturn_t nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
    memory->total = is_instance(device) ? 16 : 1000;
    memory->used = is_instance(device) ? 4 + index_of(device) : 500;
    memory->free = 500;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) { *current = *pending = index_of(device) == 0 && is("mig"); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *count) { (void)device; *count = 7; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned int slot, void **instance) { (void)device; *instance = (void *)(long)(slot + 11); return slot == 0 || slot == 2 ? SUCCESS : NOT_FOUND; }
nvmlReturn_t nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) { (void)sensor; *celsius = 40 + index_of(device); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) { (void)device; *millijoules = 7000; return SUCCESS; }
// 4: the cap of its power. 64: the hardware's own guard against heat.
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) { *reasons = index_of(device) == 1 && is("hot") ? 4 | 64 : 0; return SUCCESS; }
#ifdef WITHOUT_POWER
nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { (void)device; (void)milliwatts; return NOT_SUPPORTED; }
#else
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(void *device, nvmlMemory_v2_t *memory) {
    memory->total = is_instance(device) ? 16 : 1000;
    memory->used = is_instance(device) ? 4 + index_of(device) : 400;
    memory->reserved = 100;
    memory->free = 500;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { (void)device; *milliwatts = 350000; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) { return nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons); }
nvmlReturn_t nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *count) { (void)kind; (void)counter; *count = index_of(device) == 1 && is("flipped") ? 3 : 0; return SUCCESS; }
#endif
