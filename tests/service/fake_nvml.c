// Two GPUs with fixed readings behind NVML's own names: the real pynvml loads this as libnvidia-ml.so.1.
// Signatures: nvml.h of CUDA 13. With -DWITHOUT_POWER a driver that lacks a function and refuses another.
#include <stdio.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
enum { SUCCESS = 0, NOT_SUPPORTED = 3 };

static long index_of(void *device) { return (long)device - 1; }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
nvmlReturn_t nvmlInit_v2(void) { return SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)(long)(index + 1); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetName(void *device, char *name, unsigned int length) { (void)device; snprintf(name, length, "NVIDIA H200"); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) { snprintf(uuid, length, "GPU-%ld", index_of(device)); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetUtilizationRates(void *device, nvmlUtilization_t *rates) { rates->gpu = 25 * (index_of(device) + 1); rates->memory = 5; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) { (void)device; memory->total = 1000; memory->used = 400; memory->free = 600; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) { (void)sensor; *celsius = 40 + index_of(device); return SUCCESS; }
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) { (void)device; *millijoules = 7000; return SUCCESS; }
#ifdef WITHOUT_POWER
nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { (void)device; (void)milliwatts; return NOT_SUPPORTED; }
#else
nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { (void)device; *milliwatts = 350000; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *count) { (void)device; (void)kind; (void)counter; *count = 0; return SUCCESS; }
#endif
