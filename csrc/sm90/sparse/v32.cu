// Sparse decode over a cache of v32 rows (512 e4m3, 4 scales, 64 bf16).
#define FMH_LISTS 1
#define FMH_FORMAT 1
#include "sm90/quantised/kernel.h"
