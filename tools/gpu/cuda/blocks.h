/* Between the driver (libcuda.c) and blocks.c. */
#ifndef BLOCKS_H
#define BLOCKS_H
#include "lanes.h"

enum { FORWARD, BACKWARD, SHUFFLED };
extern int soft_order;

/* Is this memory of this device? Then also says of which range. */
int device_memory(int device, uint64_t address, uint32_t bytes, uint64_t *from, uint64_t *to);
void run_kernel(const struct kernel *, const uint8_t *parameters, uint32_t parameter_bytes, const uint32_t *grid, const uint32_t *size, uint32_t dynamic_shared,
                int device);
#endif
